#include "headrace/pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "headrace/check.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace headrace {
namespace {

constexpr int kSpins =
    20000;  // some 50 to 300 microseconds, by processor: longer than Python between two calls

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

std::vector<int> allowed_cores() {
    std::vector<int> cores;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        for (int core = 0; core < CPU_SETSIZE; ++core)
            if (CPU_ISSET(core, &set)) cores.push_back(core);
#endif
    return cores;
}

// A job is open while `open_` is set; a worker joins by counting itself into `active` and leaves when no
// piece is left. The caller closes the job when it finds no piece left, and waits for those that joined, not
// for those that come late: a worker whose core is taken by another process delays nobody.
//
//   state   [ epoch | open | active ]      one word, so that joining a closed job is impossible
class Pool {
  public:
    explicit Pool(int count) {
        const std::vector<int> cores = allowed_cores();
        for (int i = 1; i < count; ++i) {
            workers_.emplace_back([this] { work(); });
#if defined(__linux__)
            // Only workers are pinned: threads that the caller starts later would inherit its mask.
            if (cores.size() > 1) {
                cpu_set_t set;
                CPU_ZERO(&set);
                CPU_SET(cores[static_cast<size_t>(i) % cores.size()], &set);
                pthread_setaffinity_np(workers_.back().native_handle(), sizeof set, &set);
            }
#endif
        }
    }

    ~Pool() {
        stopping_ = true;
        epoch_.fetch_add(1);
        epoch_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    void run(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
        body_ = body, context_ = context, count_ = count, grain_ = grain;
        next_.store(0, std::memory_order_relaxed);
        state_.store(kOpen, std::memory_order_release);
        epoch_.fetch_add(
            1);  // sequentially consistent, like the worker's `sleepers_`: one of the two sees the other
        if (sleepers_.load() > 0) epoch_.notify_all();
        take_pieces();
        state_.fetch_and(~kOpen, std::memory_order_acq_rel);
        while (state_.load(std::memory_order_acquire) != 0) pause();
    }

  private:
    static constexpr uint32_t kOpen = 1u << 31;
    static constexpr int64_t kShares = 4;  // a piece is at most this part of a thread's share of what is left

    // Long pieces first, short ones last: what lies side by side in memory is mostly read by one thread,
    // which its prefetching needs, and nobody waits long for the last piece.
    void take_pieces() {
        const int64_t shares = kShares * size();
        int64_t begin = next_.load(std::memory_order_relaxed);
        while (begin < count_) {
            const int64_t end = std::min(begin + std::max(grain_, (count_ - begin) / shares), count_);
            if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
            body_(context_, begin, end);
            begin = next_.load(std::memory_order_relaxed);
        }
    }

    void work() {
        uint32_t seen = 0;
        while (!stopping_) {
            seen = wait(seen);
            uint32_t state = state_.load(std::memory_order_acquire);
            while (state & kOpen) {
                if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
                    take_pieces();
                    state_.fetch_sub(1, std::memory_order_acq_rel);
                    break;
                }
            }
        }
    }

    // Until the epoch is no longer `seen`; returns the new one.
    uint32_t wait(uint32_t seen) {
        for (int i = 0; i < kSpins; ++i) {
            const uint32_t now = epoch_.load(std::memory_order_acquire);
            if (now != seen) return now;
            pause();
        }
        sleepers_.fetch_add(1);
        epoch_.wait(seen);
        sleepers_.fetch_sub(1);
        return epoch_.load(std::memory_order_acquire);
    }

    alignas(64) std::atomic<uint32_t> state_{0};
    alignas(64) std::atomic<uint32_t> epoch_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> stopping_{false};
    void (*body_)(void*, int64_t, int64_t) = nullptr;
    void* context_ = nullptr;
    int64_t count_ = 0, grain_ = 1;
    std::vector<std::thread> workers_;
};

struct Shared {
    std::mutex mutex;  // one caller at a time; a second one works alone
    std::unique_ptr<Pool> pool;
    int wanted = 0;  // 0: one per core
};

Shared& shared() {
    static Shared* const instance = [] {
        auto* made = new Shared;  // never destroyed: no worker outlives its pool at exit
#if defined(__unix__)
        // A forked child has none of the threads: it starts its own when it needs them.
        pthread_atfork(nullptr, nullptr, [] {
            Shared& mine = shared();
            new (&mine.mutex) std::mutex;
            (void)mine.pool.release();
        });
#endif
        return made;
    }();
    return *instance;
}

int wanted_threads(const Shared& from) {
    return from.wanted ? from.wanted : std::max<int>(1, static_cast<int>(allowed_cores().size()));
}

}  // namespace

void run_parallel(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
    if (count <= 0) return;
    Shared& from = shared();
    std::unique_lock lock(from.mutex, std::defer_lock);
    if (count <= grain || !lock.try_lock()) return body(context, 0, count);
    if (!from.pool) from.pool = std::make_unique<Pool>(wanted_threads(from));
    if (from.pool->size() == 1) return body(context, 0, count);
    from.pool->run(count, grain, body, context);
}

void* scratch(Scratch use, int64_t bytes) {
    struct Buffer {
        void* data = nullptr;
        size_t size = 0;
        ~Buffer() { std::free(data); }
    };
    static thread_local Buffer buffers[2];
    Buffer& mine = buffers[static_cast<int>(use)];
#if defined(__SANITIZE_ADDRESS__)
    // New for each call and none too large: what is read beyond its end, before it is written, or after the
    // next call, shows.
    std::free(mine.data);
    HR_ICHECK(posix_memalign(&mine.data, 64, static_cast<size_t>(bytes)) == 0, "no memory for scratch");
    return mine.data;
#endif
    const size_t wanted = (static_cast<size_t>(bytes) + 63) / 64 * 64;
    if (wanted > mine.size) {
        std::free(mine.data);
        mine.data = std::aligned_alloc(64, wanted);
        mine.size = mine.data ? wanted : 0;
        HR_ICHECK(mine.data, "no memory for %lld bytes of scratch", static_cast<long long>(bytes));
    }
    return mine.data;
}

void set_threads(int count) {
    Shared& from = shared();
    const std::scoped_lock lock(from.mutex);
    from.wanted = std::max(count, 0);
    if (from.pool && from.pool->size() != wanted_threads(from)) from.pool.reset();
}

int threads() {
    Shared& from = shared();
    const std::scoped_lock lock(from.mutex);
    return from.pool ? from.pool->size() : wanted_threads(from);
}

}  // namespace headrace
