// The one thread pool of native work.
//
// Its threads are started at the first parallel call (or by set_threads), pinned to one core each, and then
// wait for work: spinning for some microseconds, because the next operation of a decoding step follows at
// once, then parked, because a core that spins while PyTorch or another process computes is a core lost.
#pragma once

#include <stdint.h>

namespace headrace {

// Runs body(context, begin, end) over [0, count) in pieces of at most `grain`, on every thread of the pool,
// the caller among them. Returns when all pieces are done. Which thread runs which piece is not determined.
// Not reentrant: a body does not call it. The body does not throw.
void run_parallel(int64_t count, int64_t grain, void (*body)(void* context, int64_t begin, int64_t end),
                  void* context);

// At least `bytes` of this thread's own memory, aligned to 64 and kept for its next call. `piece` is for the
// body of a parallel piece, `call` for the caller around it, who runs pieces as well.
enum class Scratch : int { piece, call };
void* scratch(Scratch use, int64_t bytes);

// The number of threads, the caller's included; at least 1.
void set_threads(int count);
int threads();

}  // namespace headrace
