// page_dots for processors. Compiled once per level.
//
// Bound: every vector is read once per row.
#include <math.h>

#include "headrace/parallel.h"
#include "headrace/simd.h"
#include "headrace/simd_int.h"
#include "page_dots/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kStretch = 32;  // pages
constexpr int kTogether = 4;      // query heads that a vector is loaded for

inline const bf16* vectors_of(const PageDots& a, int64_t page, int64_t kv_head) {
    return reinterpret_cast<const bf16*>(a.arena + page * a.page_bytes + a.at) + kv_head * a.count * a.size;
}

// out[m * apart] = q[m] . vector
template <int kHeads>
inline void dot(const float* q, const bf16* vector, int64_t size, float* out, int64_t apart) {
    F32x16 sums[kHeads];
    HR_UNROLL for (int m = 0; m < kHeads; ++m) sums[m] = broadcast(0);
    for (int64_t x = 0; x < size; x += kLanes) {
        const F32x16 v = load(vector + x);
        HR_UNROLL for (int m = 0; m < kHeads; ++m) sums[m] = fma(load(q + m * size + x), v, sums[m]);
    }
    HR_UNROLL for (int m = 0; m < kHeads; ++m) out[m * apart] = sum(sums[m]);
}

// Pages [first, end) of a row's table.
void dot_pages(const PageDots& a, int64_t row, int64_t first, int64_t end) {
    const int64_t each = a.heads / a.kv_heads, apart = a.width * a.count;
    const int64_t* table = a.tables + a.row_tables[row] * a.width;
    for (int64_t b = first; b < end; ++b) {
        for (int64_t g = 0; g < a.kv_heads; ++g) {
            const bf16* vectors = vectors_of(a, table[b], g);
            const auto* ahead =
                reinterpret_cast<const char*>(vectors_of(a, table[b + 1 < end ? b + 1 : b], g));
            for (int64_t i = 0; i < a.count * a.size * 2; i += 64) prefetch(ahead + i);
            for (int64_t c = 0; c < a.count; ++c, vectors += a.size) {
                int64_t n = row * a.heads + g * each;
                const int64_t last = n + each;
                float* out = a.out + b * a.count + c;
                for (; n + kTogether <= last; n += kTogether)
                    dot<kTogether>(a.q + n * a.size, vectors, a.size, out + n * apart, apart);
                for (; n < last; ++n) dot<1>(a.q + n * a.size, vectors, a.size, out + n * apart, apart);
            }
        }
    }
}

void dots(const PageDots& a) {
    const int64_t stretches = (a.width + kStretch - 1) / kStretch;
    for_each_row(a.rows * stretches, kStretch * a.heads * a.count * a.size / kLanes, [&](int64_t piece) {
        const int64_t row = piece / stretches, first = piece % stretches * kStretch;
        const int64_t end = first + kStretch < a.width ? first + kStretch : a.width;
        const int64_t count = a.row_counts[row] < end ? a.row_counts[row] : end;
        dot_pages(a, row, first, count);
        const int64_t from = count > first ? count : first;
        for (int64_t n = row * a.heads; n < (row + 1) * a.heads; ++n)
            for (int64_t i = from * a.count; i < end * a.count; ++i)
                a.out[n * a.width * a.count + i] = -INFINITY;
    });
}

}  // namespace

constinit const PageDotsTable page_dots = {dots};

}  // namespace headrace::HR_LEVEL
