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

// h *= up . x, for some rows and some neurons, both constants; fetches the neurons at `next` meanwhile.
template <int kRows, int kCount, class T>
inline void multiply_up(const Neurons& a, const float* x, const int32_t* list, const int32_t* next,
                        float* h) {
    const T* up = static_cast<const T*>(a.up);
    const int64_t padded = a.padded();
    F32x16 sums[kRows][kCount];
    HR_UNROLL
    for (int r = 0; r < kRows; ++r) {
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) sums[r][u] = broadcast(0);
    }
    for (int64_t i = 0; i < a.width; i += kLanes) {
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) {
            const F32x16 w = load_part(up + list[u] * a.width + i, a.width - i);
            if (next) prefetch(up + next[u] * a.width + i);
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

// The same for every row, and `count` neurons.
template <class T>
void multiply_ups(const Neurons& a, const int32_t* list, int64_t count) {
    for (int64_t first = 0; first < count; first += kGroup) {
        const int64_t stop = count - first < kGroup ? count : first + kGroup;
        int64_t row = 0;
        for (; row + kTile <= a.rows; row += kTile)
            for (int64_t u = first; u < stop; ++u)
                multiply_up<kTile, 1, T>(a, a.memory + row * a.padded(), list + u, nullptr,
                                         a.gate + row * a.neurons);
        for (; row < a.rows; ++row) {
            const float* x = a.memory + row * a.padded();
            float* h = a.gate + row * a.neurons;
            int64_t u = first;
            for (; u + kUps <= stop; u += kUps) {
                const int32_t* next = row == 0 && u + 2 * kUps <= count ? list + u + kUps : nullptr;
                multiply_up<1, kUps, T>(a, x, list + u, next, h);
            }
            for (; u < stop; ++u) multiply_up<1, 1, T>(a, x, list + u, nullptr, h);
        }
    }
}

// y += h . down over outputs [first, first + count), of some rows and some neurons, both constants.
template <int kRows, int kCount, class T>
inline void add_down(const Neurons& a, const int32_t* list, const int32_t* next, const float* h,
                     int64_t first, int64_t count, float* y, int64_t stride) {
    const T* down = static_cast<const T*>(a.down) + first;
    for (int64_t i = 0; i < count; i += kLanes) {
        F32x16 sums[kRows];
        HR_UNROLL
        for (int r = 0; r < kRows; ++r) sums[r] = load(y + r * stride + i);
        HR_UNROLL
        for (int u = 0; u < kCount; ++u) {
            const F32x16 w = load_part(down + list[u] * a.width + i, a.width - first - i);
            if (next) prefetch(down + next[u] * a.width + i);
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
    auto take = [&]<int kCount>() {
        for (; u + kCount <= count; u += kCount) {
            int64_t row = 0;
            for (; row + kTile <= a.rows; row += kTile)
                add_down<kTile, kCount, T>(a, list + u, nullptr, a.gate + row * a.neurons, first, outputs,
                                           y + row * stride, stride);
            for (; row < a.rows; ++row) {
                const int32_t* next = row == 0 && u + 2 * kCount <= count ? list + u + kCount : nullptr;
                add_down<1, kCount, T>(a, list + u, next, a.gate + row * a.neurons, first, outputs,
                                       y + row * stride, stride);
            }
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
