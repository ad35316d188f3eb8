// AMX without a processor that has it: eight tiles per thread, and what our sources do with them. What the
// processor answers with an illegal instruction ends the program, with a message.
#pragma once

// GCC has these as macros.
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbf16ps

namespace headrace::HR_LEVEL {

struct EmulatedTile {
    int rows, row_bytes;  // 0: not configured
    uint8_t byte[16][64];

    template <class T>
    T at(int row, int column) const {
        T value;
        memcpy(&value, byte[row] + column * static_cast<int>(sizeof value), sizeof value);
        return value;
    }
};
inline thread_local EmulatedTile emulated_tiles[8];

inline EmulatedTile& emulated_tile(int number) {
    EmulatedTile& tile = emulated_tiles[number];
    HR_ICHECK(tile.rows > 0, "tile %d is used without a configuration", number);
    return tile;
}

inline void _tile_release() {
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}
inline void _tile_loadconfig(const void* config) {
    uint8_t byte[64];  // palette, start row, 14 reserved, 16 words of bytes per row, 16 bytes of rows
    memcpy(byte, config, sizeof byte);
    HR_ICHECK(byte[0] == 1 && byte[1] == 0, "palette %d, start row %d", byte[0], byte[1]);
    _tile_release();
    for (int i = 0; i < 8; ++i) {
        EmulatedTile& tile = emulated_tiles[i];
        tile.rows = byte[48 + i], tile.row_bytes = byte[16 + 2 * i] + 256 * byte[17 + 2 * i];
        HR_ICHECK(tile.rows <= 16 && tile.row_bytes <= 64 && (tile.rows > 0) == (tile.row_bytes > 0),
                  "tile %d of %d rows of %d bytes", i, tile.rows, tile.row_bytes);
    }
}

inline void _tile_zero(int number) {
    EmulatedTile& tile = emulated_tile(number);
    memset(tile.byte, 0, sizeof tile.byte);
}
inline void _tile_loadd(int number, const void* from, int64_t stride) {
    EmulatedTile& tile = emulated_tile(number);
    memset(tile.byte, 0, sizeof tile.byte);
    for (int row = 0; row < tile.rows; ++row)
        memcpy(tile.byte[row], static_cast<const char*>(from) + row * stride,
               static_cast<size_t>(tile.row_bytes));
}
inline void _tile_stored(int number, void* to, int64_t stride) {
    const EmulatedTile& tile = emulated_tile(number);
    for (int row = 0; row < tile.rows; ++row)
        memcpy(static_cast<char*>(to) + row * stride, tile.byte[row], static_cast<size_t>(tile.row_bytes));
}

// c [m, n] += a [m, k] * b [k, n], where an element of a and b is four bytes and one of c too; value(m, n).
template <class Value>
inline void emulate_product(int c, int a, int b, const Value& value) {
    EmulatedTile& to = emulated_tile(c);
    const EmulatedTile &left = emulated_tile(a), &right = emulated_tile(b);
    HR_ICHECK(c != a && c != b && a != b, "tiles %d, %d and %d are not three", c, a, b);
    HR_ICHECK(to.rows == left.rows && left.row_bytes == 4 * right.rows && to.row_bytes == right.row_bytes &&
                  left.row_bytes % 4 == 0 && to.row_bytes % 4 == 0,
              "a product of %d x %d bytes and %d x %d bytes in %d x %d", left.rows, left.row_bytes,
              right.rows, right.row_bytes, to.rows, to.row_bytes);
    for (int m = 0; m < to.rows; ++m) {
        for (int n = 0; n < to.row_bytes / 4; ++n) {
            const auto sum = value(to, left, right, m, n);
            memcpy(to.byte[m] + 4 * n, &sum, sizeof sum);
        }
    }
}

template <class B>
inline void emulate_int8_product(int c, int a, int b) {
    emulate_product(
        c, a, b,
        [](const EmulatedTile& to, const EmulatedTile& left, const EmulatedTile& right, int m, int n) {
            uint32_t sum = to.at<uint32_t>(m, n);  // wraps
            for (int k = 0; k < right.rows; ++k)
                for (int i = 0; i < 4; ++i)
                    sum += static_cast<uint32_t>(int{left.at<int8_t>(m, 4 * k + i)} *
                                                 int{right.at<B>(k, 4 * n + i)});
            return sum;
        });
}
inline void _tile_dpbssd(int c, int a, int b) {
    emulate_int8_product<int8_t>(c, a, b);
}
inline void _tile_dpbsud(int c, int a, int b) {
    emulate_int8_product<uint8_t>(c, a, b);
}

// Lower and upper products of the pairs are summed apart, then added, then added to what is there.
inline void _tile_dpbf16ps(int c, int a, int b) {
    emulate_product(
        c, a, b,
        [](const EmulatedTile& to, const EmulatedTile& left, const EmulatedTile& right, int m, int n) {
            float sum[2] = {};
            for (int k = 0; k < right.rows; ++k)
                for (int i = 0; i < 2; ++i)
                    sum[i] = emulated_bf16_fma(left.at<uint16_t>(m, 2 * k + i),
                                               right.at<uint16_t>(k, 2 * n + i), sum[i]);
            const float both = emulated_flush(sum[0] + sum[1]);
            return emulated_flush(emulated_flush(to.at<float>(m, n)) + both);
        });
}

}  // namespace headrace::HR_LEVEL
