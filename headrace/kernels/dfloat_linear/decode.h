// A block's weights as bfloat16 again, chunk by chunk, in a scratch that stays in a cache. Compiled once per
// level.
//
// Whatever the escapes hold, nothing beyond them is read, and nothing beyond the scratch is written.
#pragma once

#include "bf16_linear/rows.h"
#include "dfloat_linear/kernel.h"
#include "dfloat_linear/registers.h"

namespace headrace::HR_LEVEL {
namespace {

// A block, as products ask for it (bf16_linear/rows.h).
class Decoded {
  public:
    // One chunk: memory is read steadily only if little is decoded before some of it is multiplied.
    static constexpr int64_t kSlice = 1;
    static constexpr int64_t kLine = DfloatShape::kChunkBytes / 64;
    static_assert(DfloatShape::kChunkItems / 32 == 64);

    // `room` is for as many chunks as are asked for at once.
    Decoded(const DfloatWeight& weight, int64_t block, bf16* room)
        : all_chunks_(weight.shape.chunks()),
          planes_(weight.planes + block * weight.shape.block_bytes()),
          room_(room) {
        const int64_t from = weight.starts[block], to = weight.starts[block + 1];
        whole_ = 0 <= from && from <= to && to <= weight.escape_bytes;
        escapes_ = at_ = weight.escapes + (whole_ ? from : 0);
        end_ = escapes_ + (whole_ ? to - from : 0);
        table_ = load_table(planes_);
    }

    const bf16* chunks(int64_t first, int64_t count) {
        if (first == 0) at_ = escapes_;
        const uint8_t* tile = planes_ + DfloatShape::kHeadBytes + first * DfloatShape::kChunkBytes;
        bf16* out = room_;
        for (int64_t c = 0; c < count; ++c, out += DfloatShape::kChunkItems) {
            for (int64_t t = 0; t < DfloatShape::kTiles; ++t, tile += DfloatShape::kTileBytes)
                decode(tile, out + t * DfloatShape::kTileItems);
            put_escapes(out);
        }
        if (first + count == all_chunks_ && at_ != end_) whole_ = false;
        return room_;
    }

    const char* ahead(int64_t first) const {
        constexpr int64_t kAhead = 8192;
        return reinterpret_cast<const char*>(planes_ + DfloatShape::kHeadBytes +
                                             first * DfloatShape::kChunkBytes + kAhead);
    }

    // Whether escapes were as they should be, as far as they were asked for.
    bool whole() const { return whole_; }

  private:
    void decode(const uint8_t* tile, bf16* out) const {
        const Bytes a = load_bytes(tile), b = load_bytes(tile + 64), c = load_bytes(tile + 128);
        const Bytes codes[] = {field(a, 0, 7),
                               field(a, 4, 7),
                               field(b, 0, 7),
                               field(b, 4, 7),
                               field(c, 0, 7),
                               field(c, 4, 7),
                               field(a, 3, 1) | field(b, 2, 2) | field(c, 1, 4),
                               field(a, 7, 1) | field(b, 6, 2) | field(c, 5, 4)};
        HR_UNROLL
        for (int64_t k = 0; k < DfloatShape::kRegisters; ++k)
            store_words(out + k * DfloatShape::kRegister,
                        load_bytes(tile + DfloatShape::kCodeBytes + k * DfloatShape::kRegister),
                        look_up(table_, codes[k]));
    }

    void put_escapes(bf16* chunk) {
        // A copy: a byte that is stored might be part of at_ itself, as far as the compiler knows.
        const uint8_t* at = at_;
        uint16_t count = 0;
        if (end_ - at < 2) return fail();
        memcpy(&count, at, sizeof count);
        at += 2;
        if (end_ - at < 2 * count) return fail();
        const uint8_t* const last = at_ = at + 2 * count;
        uint8_t* bytes = reinterpret_cast<uint8_t*>(chunk);
        uint32_t place = 0;
        for (; at < last; at += 2) {
            place += at[0];
            bytes[place % DfloatShape::kChunkItems * 2 + 1] = at[1];
        }
        if (place >= DfloatShape::kChunkItems) whole_ = false;
    }
    void fail() {
        whole_ = false;
        at_ = end_;
    }

    int64_t all_chunks_;
    const uint8_t *planes_, *escapes_, *at_, *end_;
    Bytes table_;
    bf16* room_;
    bool whole_;
};

}  // namespace
}  // namespace headrace::HR_LEVEL
