/* Preloaded into a peer, this makes CPUID tell the truth about AMX on virtual machines that hide it.

   Such a machine announces AMX, and AMX works, but CPUID leaves 0x1D and 0x1E (shape of the tiles) are zero; oneDNN
   believes them and dies. Linux can make CPUID trap (ARCH_CPUID): the handler below runs it with the trap off, and fills
   in the two leaves with the shape that every processor with AMX has had so far, where they are zero.

       cc -O2 -shared -fPIC show_tiles.c -o libshow_tiles.so -ldl */
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012 };

typedef void (*handler)(int);
static int (*real_sigaction)(int, const struct sigaction*, struct sigaction*);
static handler (*real_signal)(int, handler);

static void answer(int number, siginfo_t* info, void* place) {
    greg_t* registers = ((ucontext_t*)place)->uc_mcontext.gregs;
    const uint8_t* code = (const uint8_t*)registers[REG_RIP];
    (void)info;
    if (code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID: an ordinary fault, which happens again and ends the process */
        real_signal(number, SIG_DFL);
        return;
    }
    const uint32_t leaf = (uint32_t)registers[REG_RAX], part = (uint32_t)registers[REG_RCX];
    uint32_t a, b, c, d;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __cpuid_count(leaf, part, a, b, c, d);
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    if (leaf == 0x1d && part == 0 && a == 0) a = 1; /* palettes */
    if (leaf == 0x1d && part == 1 && a == 0) {
        a = 1024u << 16 | 8192u; /* bytes of a tile, of all tiles */
        b = 8u << 16 | 64u;      /* tiles, bytes of a row */
        c = 16u;                 /* rows */
    }
    if (leaf == 0x1e && part == 0 && b == 0) b = 64u << 8 | 16u; /* what one instruction multiplies */
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

static void find(void) {
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    if (!real_signal) real_signal = dlsym(RTLD_NEXT, "signal");
}

/* Nobody else may take this signal (some libraries do, to print a backtrace): every CPUID would be an error again. */
int sigaction(int number, const struct sigaction* wanted, struct sigaction* before) {
    find();
    return real_sigaction(number, number == SIGSEGV ? 0 : wanted, before);
}

handler signal(int number, handler wanted) {
    find();
    return number == SIGSEGV ? SIG_DFL : real_signal(number, wanted);
}

__attribute__((constructor)) static void start(void) {
    struct sigaction wanted = {0};
    wanted.sa_sigaction = answer;
    wanted.sa_flags = SA_SIGINFO | SA_NODEFER;
    find();
    if (real_sigaction(SIGSEGV, &wanted, 0) == 0) syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
}
