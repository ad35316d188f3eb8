// A block's weights as bfloat16 again, chunk by chunk, in a scratch that stays in a cache. Compiled once per
// level.
//
// Whatever the escapes hold, nothing beyond them is read, and nothing beyond the scratch is written.
#pragma once

#include "bf16_linear/rows.h"
#include "dfloat_linear/kernel.h"
#include "dfloat_linear/registers.h"
#include "int_linear/codes.h"

namespace headrace::HR_LEVEL {
namespace {

constexpr int64_t kFetched = 8192;  // bytes from what is decoded to what is fetched

// A block, as products ask for it (bf16_linear/rows.h).
class Decoded {
  public:
    static constexpr bool kRead = false;  // it lies in a cache

    // `room` is for as many chunks as are asked for at once.
    Decoded(const DfloatWeight& weight, int64_t block, bf16* room)
        : all_chunks_(weight.shape.chunks()),
          planes_(weight.planes + block * weight.shape.block_bytes()),
          room_(room) {
        const int64_t from = weight.starts[block], to = weight.starts[block + 1];
        whole_ = 0 <= from && from <= to && to <= weight.escape_bytes;
        escapes_ = at_ = weight.escapes + (whole_ ? from : 0);
        end_ = escapes_ + (whole_ ? to - from : 0);
        uint8_t low[16] = {}, high[16] = {};
        for (int64_t i = 0; i < DfloatShape::kEntries; ++i) {
            low[i] = static_cast<uint8_t>(planes_[i] << 7);
            high[i] = static_cast<uint8_t>(planes_[i] >> 1);
        }
        low_ = load_table(low), high_ = load_table(high);
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

    // Whether escapes were as they should be, as far as they were asked for.
    bool whole() const { return whole_; }

  private:
    void decode(const uint8_t* tile, bf16* out) const {
        for (int64_t at = 0; at < DfloatShape::kTileBytes; at += 64) prefetch(tile + at + kFetched);
        Bytes code[kQuads];
        unpack<3>(tile, code);
        HR_UNROLL
        for (int64_t k = 0; k < DfloatShape::kRegisters; ++k) {
            const Bytes rest = load_bytes(tile + DfloatShape::kCodeBytes + k * DfloatShape::kRegister);
            store_words(out + k * DfloatShape::kRegister, field(rest, 0, 0x7f) | look_up(low_, code[k]),
                        field(rest, 0, 0x80) | look_up(high_, code[k]));
        }
    }

    void put_escapes(bf16* chunk) {
        uint16_t count = 0;
        if (end_ - at_ < 2) return fail();
        memcpy(&count, at_, sizeof count);
        at_ += 2;
        if (end_ - at_ < 2 * count) return fail();
        uint32_t place = 0;
        for (const uint8_t* last = at_ + 2 * count; at_ < last; at_ += 2) {
            place += at_[0];
            bf16& weight = chunk[place % DfloatShape::kChunkItems];
            weight.bits = static_cast<uint16_t>((weight.bits & 0x807f) | at_[1] << 7);
        }
        if (place >= DfloatShape::kChunkItems) whole_ = false;
    }
    void fail() {
        whole_ = false;
        at_ = end_;
    }

    int64_t all_chunks_;
    const uint8_t *planes_, *escapes_, *at_, *end_;
    Bytes low_, high_;  // bytes of a weight, from its code
    bf16* room_;
    bool whole_;
};

}  // namespace
}  // namespace headrace::HR_LEVEL
