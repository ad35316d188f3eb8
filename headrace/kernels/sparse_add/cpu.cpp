// sparse_add for processors. Compiled once per level.
//
// An output's entries are multiplied in their order, one fused multiply-add each, whatever rows are beside a
// row: the same bits on every level.
//
// Bounds, per entry: 4 bytes read; one multiply-add of 16 rows, or of one.
#include "headrace/parallel.h"
#include "sparse_add/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kPiece = 64;  // outputs

// The entries of one output. Where they are said to lie beyond the others, there are none.
struct Entries {
    const uint32_t *at, *end;
    bool whole;

    Entries(const SparseWeight& weight, int64_t output) {
        const int64_t from = weight.starts[output], to = weight.starts[output + 1];
        whole = 0 <= from && from <= to && to <= weight.count;
        at = weight.entries + (whole ? from : 0);
        end = weight.entries + (whole ? to : 0);
    }
};

inline float weight_of(uint32_t entry) {
    entry &= 0xffff0000;
    float weight;
    memcpy(&weight, &entry, sizeof weight);
    return weight;
}

// The input of an entry, 0 if it does not exist.
inline int64_t input_of(uint32_t entry, int64_t width, bool& whole) {
    const int64_t input = entry & 0xffff;
    if (input < width) return input;
    whole = false;
    return 0;
}

void read_rows(const SparseAdd& a) {
    const int64_t width = a.weight.width, padded = (width + kLanes - 1) / kLanes * kLanes;
    for_each_row(a.count, 8 * width, [&](int64_t row) {
        float* x = static_cast<float*>(scratch(Scratch::piece, padded * 4));
        read_row(a.source, row, width, x);
        if (a.count == 1) {
            memcpy(a.rows, x, static_cast<size_t>(width) * sizeof(float));
            return;
        }
        float* to = a.rows + row / kLanes * width * kLanes + row % kLanes;
        for (int64_t i = 0; i < width; ++i) to[i * kLanes] = x[i];
    });
}

inline bool add_one_row(const SparseAdd& a, int64_t output) {
    Entries entries(a.weight, output);
    float sum = 0;
    for (const uint32_t* at = entries.at; at < entries.end; ++at)
        sum = __builtin_fmaf(weight_of(*at), a.rows[input_of(*at, a.weight.width, entries.whole)], sum);
    a.out[output] += sum;
    return entries.whole;
}

inline bool add_rows(const SparseAdd& a, int64_t output) {
    Entries entries(a.weight, output);
    for (int64_t first = 0; first < a.count; first += kLanes) {
        const float* x = a.rows + first * a.weight.width;
        F32x16 sums = broadcast(0);
        for (const uint32_t* at = entries.at; at < entries.end; ++at)
            sums = fma(broadcast(weight_of(*at)),
                       load(x + input_of(*at, a.weight.width, entries.whole) * kLanes), sums);
        float sum[kLanes];
        store(sum, sums);
        const int64_t count = a.count - first < kLanes ? a.count - first : kLanes;
        for (int64_t r = 0; r < count; ++r) a.out[(first + r) * a.weight.outputs + output] += sum[r];
    }
    return entries.whole;
}

bool add(const SparseAdd& a) {
    int damaged = 0;
    read_rows(a);
    in_pieces(a.weight.outputs, kPiece, [&](int64_t begin, int64_t end) {
        bool whole = true;
        for (int64_t output = begin; output < end; ++output)
            whole &= a.count == 1 ? add_one_row(a, output) : add_rows(a, output);
        if (!whole) __atomic_store_n(&damaged, 1, __ATOMIC_RELAXED);
    });
    return !damaged;
}

bool put_outputs(const SparseWeight& weight, const int64_t* outputs, int64_t count, float* out) {
    bool whole = true;
    for (int64_t row = 0; row < count; ++row) {
        Entries entries(weight, outputs[row]);
        for (const uint32_t* at = entries.at; at < entries.end; ++at)
            out[row * weight.width + input_of(*at, weight.width, entries.whole)] = weight_of(*at);
        whole &= entries.whole;
    }
    return whole;
}

}  // namespace

constinit const SparseAddTable sparse_add = {add, put_outputs};

}  // namespace headrace::HR_LEVEL
