// route for processors. Compiled once per level.
#include <math.h>

#include "headrace/parallel.h"
#include "headrace/simd_math.h"
#include "route/kernel.h"

namespace headrace::HR_LEVEL {
namespace {

// The first experts are those with the largest logits, lower ids first among equals: each one goes in before
// all that are smaller. Few are active, so most experts take one comparison.
void pick_largest(const float* logits, int64_t experts, int64_t active, int64_t* ids) {
    const auto larger = [](float a, float b) { return a > b || (a != a && b == b); };
    int64_t picked = 0;
    for (int64_t expert = 0; expert < experts; ++expert) {
        int64_t place = picked < active ? picked++ : active;
        for (; place > 0 && larger(logits[expert], logits[ids[place - 1]]); --place)
            if (place < active) ids[place] = ids[place - 1];
        if (place < active) ids[place] = expert;
    }
}

void route_row(const Routing& a, int64_t row) {
    const float* logits = a.logits + row * a.experts;
    float* shares = a.shares + row * a.active;
    int64_t* ids = a.ids + row * a.active;
    pick_largest(logits, a.experts, a.active, ids);
    const double largest = static_cast<double>(logits[ids[0]]);
    double all = 0;
    for (int64_t expert = 0; expert < a.experts; ++expert)
        all += ::exp(static_cast<double>(logits[expert]) - largest);
    double* exact = static_cast<double*>(scratch(Scratch::piece, a.active * 8));
    double sum = 0;
    for (int64_t k = 0; k < a.active; ++k) {
        exact[k] = ::exp(static_cast<double>(logits[ids[k]]) - largest) / all;
        sum += exact[k];
    }
    for (int64_t k = 0; k < a.active; ++k)
        shares[k] = static_cast<float>(a.renormalise ? exact[k] / sum : exact[k]);
}

void route_rows(const Routing& a) {
    constexpr int64_t kExponential = 50;  // operations
    for_each_row(a.rows, a.experts * kExponential, [&](int64_t row) { route_row(a, row); });
}

void gather(const Move& move, const float* from, float* to) {
    for_each_row(move.count, move.width, [&](int64_t i) {
        memcpy(to + i * move.width, from + move.rows[i] * move.stride,
               static_cast<size_t>(move.width) * sizeof(float));
    });
}

void scatter_add(const Move& move, const float* from, const float* shares, float* to) {
    for_each_row(move.count, move.width, [&](int64_t i) {
        const float* x = from + i * move.width;
        float* out = to + move.rows[i] * move.stride;
        const F32x16 share = broadcast(shares[i]);
        int64_t d = 0;
        for (; d + kLanes <= move.width; d += kLanes) store(out + d, load(out + d) + load(x + d) * share);
        for (; d < move.width; ++d) out[d] = out[d] + x[d] * shares[i];
    });
}

}  // namespace

constinit const RouteTable route = {route_rows, gather, scatter_add};

}  // namespace headrace::HR_LEVEL
