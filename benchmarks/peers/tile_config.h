/* Included into llama.cpp before anything else. g++ 12 tells its optimiser that _tile_loadconfig reads 8 of the 64 bytes
   it is given; the stores of rows and columns are then dropped, and the first AMX load is an illegal instruction. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
