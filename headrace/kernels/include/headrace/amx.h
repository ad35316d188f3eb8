// Matrix tiles (AMX): sixteen rows of 64 bytes each, eight of them per core.
#pragma once

#ifndef HR_LEVEL_AMX
#error "amx.h is for the level amx"
#endif

#include <immintrin.h>
#include <stdint.h>

namespace headrace::HR_LEVEL {

// While it lives, this thread's tiles 0-3 are sums of `rows` x 16, 4-5 hold `rows` rows of one factor, 6-7
// sixteen rows of the other. Released afterwards, so that the system need not save eight kilobytes when it
// switches threads.
class Tiles {
  public:
    Tiles(int64_t rows, int64_t step) {
        Config config = {};
        config.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            config.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? step : 64);
            config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : step / 4);
        }
#if defined(HR_EMULATED)
        _tile_loadconfig(&config);
#else
        // Not _tile_loadconfig: GCC 12's says that it reads eight bytes, and the stores of the others may be
        // dropped.
        __asm__ volatile("ldtilecfg %0" : : "m"(config));
#endif
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

  private:
    struct alignas(64) Config {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    };
};

}  // namespace headrace::HR_LEVEL
