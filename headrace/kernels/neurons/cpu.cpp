// neurons for processors. Compiled once per level.
//
// A neuron is summed over its inputs in sixteen lanes; an output over the neurons of a segment, in their
// order, and then over segments. One that left adds nothing, and adding its zero changes no bit: so rows may
// share the neurons that any of them needs, and a row has the same bits whatever rows are beside it.
//
// Bounds: with one row, the bytes of the neurons that stay, each read once as a run of 2 or 4 bytes per
// input.
#include "headrace/parallel.h"
#include "headrace/simd_int.h"
#include "headrace/simd_math.h"
#include "neurons/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kSegment = Neurons::kSegment;
constexpr int kUps = 4, kDowns = 8;  // neurons that are read side by side
constexpr int kTile = 4;             // rows that one reading of a weight serves
constexpr int64_t kGroup = 16;       // neurons that all rows pass together: second-level cache
constexpr int64_t kOutputs = 128;    // outputs of a piece, where there are many rows

struct Segment {
    int64_t first, count;
};

Segment segment_of(const Neurons& a, int64_t index) {
    const int64_t first = index * kSegment;
    return {first, a.neurons - first < kSegment ? a.neurons - first : kSegment};
}

// act(gate), and zero where it is below the threshold. A NaN stays.
void choose(const Neurons& a, const Segment& segment, int64_t row) {
    float* h = a.gate + row * a.neurons + segment.first;
    const F32x16 least = broadcast(a.threshold), zero = broadcast(0);
    for (int64_t i = 0; i < segment.count; i += kLanes) {
        const int64_t n = segment.count - i < kLanes ? segment.count - i : kLanes;
        const F32x16 g = n == kLanes ? load(h + i) : load_first(h + i, n);
        const F32x16 v = a.gelu ? gelu_tanh(g) : silu(g);
        const F32x16 kept = where_less(magnitude(v), least, zero, v);
        n == kLanes ? store(h + i, kept) : store_first(h + i, kept, n);
    }
}

// Neurons of the segment that some row needs.
int64_t list_needed(const Neurons& a, const Segment& segment, int32_t* list) {
    int64_t count = 0;
    for (int64_t i = 0; i < segment.count; ++i) {
        const float* h = a.gate + segment.first + i;
        bool needed = false;
        for (int64_t row = 0; row < a.rows && !needed; ++row) needed = h[row * a.neurons] != 0;
        if (needed) list[count++] = static_cast<int32_t>(segment.first + i);
    }
    return count;
}

template <class T>
inline F32x16 load_part(const T* p, int64_t n) {
    return n >= kLanes ? load(p) : load_first(p, n);
}

// Neurons that are read side by side, and those that are read after them: what lies kFetched bytes further on
// is fetched. More of it would push out of the nearest cache what is still to be read, as neurons of a common
// width share their places there.
template <int kCount, class T>
struct Streams {
    const T* now[kCount];
    const T* next[kCount];

    // Once per line. i: what is read now, of [0, width).
    [[gnu::always_inline]] void fetch(int64_t i, int64_t width) const {
        constexpr int64_t kFetched = 512 / sizeof(T);
        if (i * static_cast<int64_t>(sizeof(T)) % 64) return;
        const int64_t at = i + kFetched;
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) prefetch(at < width ? now[u] + at : next[u] + at - width);
    }
};

// Of the neurons in `list`; after them come those in `then`, of that matrix.
template <int kCount, class T>
Streams<kCount, T> streams_of(const void* matrix, const int32_t* list, const void* next, const int32_t* then,
                              int64_t width) {
    Streams<kCount, T> streams;
    for (int u = 0; u < kCount; ++u) {
        streams.now[u] = static_cast<const T*>(matrix) + list[u] * width;
        streams.next[u] = static_cast<const T*>(next) + then[u] * width;
    }
    return streams;
}

// h *= up . x, for some rows and some neurons, both constants.
template <int kRows, int kCount, class T>
inline void multiply_up(const Neurons& a, const float* x, const int32_t* list, const Streams<kCount, T>& ups,
                        float* h) {
    const int64_t padded = a.padded();
    F32x16 sums[kRows][kCount];
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) sums[r][u] = broadcast(0);
    }
    for (int64_t i = 0; i < a.width; i += kLanes) {
        ups.fetch(i, a.width);
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) {
            const F32x16 w = load_part(ups.now[u] + i, a.width - i);
            HR_UNROLL
            for (int r = 0; r < kRows; ++r) sums[r][u] = fma(w, load(x + r * padded + i), sums[r][u]);
        }
    }
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) {
            float& at = h[r * a.neurons + list[u]];
            if (at != 0) at *= sum(sums[r][u]);
        }
    }
}

// The same for every row, and `count` neurons. Rows after the first fetch from the second-level cache.
template <class T>
void multiply_ups(const Neurons& a, const int32_t* list, int64_t count) {
    auto take = [&]<int kRows, int kCount>(int64_t row, int64_t u) {
        // after the last of them come those of down
        const bool last = u + 2 * kCount > count;
        const auto ups = streams_of<kCount, T>(a.up, list + u, last ? a.down : a.up,
                                               last ? list : list + u + kCount, a.width);
        multiply_up<kRows, kCount, T>(a, a.memory + row * a.padded(), list + u, ups,
                                      a.gate + row * a.neurons);
    };
    for (int64_t first = 0; first < count; first += kGroup) {
        const int64_t stop = count - first < kGroup ? count : first + kGroup;
        int64_t row = 0;
        for (; row + kTile <= a.rows; row += kTile)
            for (int64_t u = first; u < stop; ++u) take.template operator()<kTile, 1>(row, u);
        for (; row < a.rows; ++row) {
            int64_t u = first;
            for (; u + kUps <= stop; u += kUps) take.template operator()<1, kUps>(row, u);
            for (; u < stop; ++u) take.template operator()<1, 1>(row, u);
        }
    }
}

// y += h . down over outputs [first, first + count), of some rows and some neurons, both constants.
template <int kRows, int kCount, class T>
inline void add_down(const Neurons& a, const int32_t* list, const Streams<kCount, T>& downs, const float* h,
                     int64_t first, int64_t count, float* y, int64_t stride) {
    for (int64_t i = 0; i < count; i += kLanes) {
        downs.fetch(i, count);
        F32x16 sums[kRows];
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) sums[r] = load(y + r * stride + i);
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) {
            const F32x16 w = load_part(downs.now[u] + i, a.width - first - i);
            HR_UNROLL
            for (int r = 0; r < kRows; ++r) sums[r] = fma(w, broadcast(h[r * a.neurons + list[u]]), sums[r]);
        }
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) store(y + r * stride + i, sums[r]);
    }
}

// The same for every row, and `count` neurons; y has room for whole vectors.
template <class T>
void add_downs(const Neurons& a, const int32_t* list, int64_t count, int64_t first, int64_t outputs, float* y,
               int64_t stride) {
    int64_t u = 0;
    const T* down = static_cast<const T*>(a.down) + first;
    auto take = [&]<int kCount>() {
        for (; u + kCount <= count; u += kCount) {
            const int32_t* then = u + 2 * kCount <= count ? list + u + kCount : list + u;
            const auto downs = streams_of<kCount, T>(down, list + u, down, then, a.width);
            int64_t row = 0;
            for (; row + kTile <= a.rows; row += kTile)
                add_down<kTile, kCount, T>(a, list + u, downs, a.gate + row * a.neurons, first, outputs,
                                           y + row * stride, stride);
            for (; row < a.rows; ++row)
                add_down<1, kCount, T>(a, list + u, downs, a.gate + row * a.neurons, first, outputs,
                                       y + row * stride, stride);
        }
    };
    take.template operator()<kDowns>();
    take.template operator()<1>();
}

void write(const Neurons& a, int64_t row, int64_t first, const float* sums, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) write_outputs(a.end, row, first + i, load(sums + i));
}

// A segment at a time, its sums apart: a neuron's numbers are read in one run.
template <class T>
void run_few(const Neurons& a) {
    const int64_t padded = a.padded(), rows = a.rows, segments = a.segments();
    float* sums = a.memory + rows * padded;  // [segments][rows][padded]
    in_pieces(segments, 1, [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) {
            const Segment segment = segment_of(a, s);
            for (int64_t row = 0; row < rows; ++row) choose(a, segment, row);
            int32_t list[kSegment];
            const int64_t count = list_needed(a, segment, list);
            multiply_ups<T>(a, list, count);
            float* y = sums + s * rows * padded;
            memset(y, 0, static_cast<size_t>(rows * padded) * sizeof(float));
            add_downs<T>(a, list, count, 0, a.width, y, padded);
        }
    });
    for_each_row(rows * (padded / kLanes), segments * kLanes, [&](int64_t piece) {
        const int64_t row = piece / (padded / kLanes), i = piece % (padded / kLanes) * kLanes;
        F32x16 total = load(sums + row * padded + i);
        for (int64_t s = 1; s < segments; ++s) total = total + load(sums + (s * rows + row) * padded + i);
        write_outputs(a.end, row, i, total);
    });
}

// Some outputs at a time, over all segments.
template <class T>
void run_many(const Neurons& a) {
    in_pieces(a.segments(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t s = begin; s < end; ++s) {
            const Segment segment = segment_of(a, s);
            for (int64_t row = 0; row < a.rows; ++row) choose(a, segment, row);
            int32_t list[kSegment];
            multiply_ups<T>(a, list, list_needed(a, segment, list));
        }
    });
    in_pieces((a.width + kOutputs - 1) / kOutputs, 1, [&](int64_t begin, int64_t end) {
        const int64_t items = a.rows * kOutputs;
        float* totals = static_cast<float*>(scratch(Scratch::piece, 2 * items * int64_t{sizeof(float)}));
        float* sums = totals + items;
        for (int64_t block = begin; block < end; ++block) {
            const int64_t first = block * kOutputs;
            const int64_t count = a.width - first < kOutputs ? a.width - first : kOutputs;
            for (int64_t s = 0; s < a.segments(); ++s) {
                const Segment segment = segment_of(a, s);
                int32_t list[kSegment];
                for (int64_t i = 0; i < segment.count; ++i) list[i] = static_cast<int32_t>(segment.first + i);
                float* y = s == 0 ? totals : sums;
                memset(y, 0, static_cast<size_t>(items) * sizeof(float));
                add_downs<T>(a, list, segment.count, first, count, y, kOutputs);
                for (int64_t i = 0; s > 0 && i < items; i += kLanes)
                    store(totals + i, load(totals + i) + load(sums + i));
            }
            for (int64_t row = 0; row < a.rows; ++row) write(a, row, first, totals + row * kOutputs, count);
        }
    });
}

void run(const Neurons& a) {
    for_each_row(a.rows, 4 * a.width, [&](int64_t row) {
        float* x = a.memory + row * a.padded();
        for (int64_t i = a.width / kLanes * kLanes; i < a.padded(); ++i) x[i] = 0;
        read_row(a.source, row, a.width, x);
    });
    if (a.rows <= Neurons::kFew) {
        a.is_bf16 ? run_few<bf16>(a) : run_few<float>(a);
    } else {
        a.is_bf16 ? run_many<bf16>(a) : run_many<float>(a);
    }
}

}  // namespace

constinit const NeuronsTable neurons = {run};

}  // namespace headrace::HR_LEVEL
