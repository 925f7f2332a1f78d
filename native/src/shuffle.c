/* The tables of shuffle.h, as constants: nothing has to be filled when the library is loaded. */
#include "shuffle.h"

/* Bits of a byte, as a constant: three copies of it, every fourth bit of them, added up by the remainder. */
#define BITS(byte) ((unsigned)(((byte) * UINT64_C(0x200040008001) & UINT64_C(0x111111111111111)) % 15))
/* Set bits below a lane, and the lane of the set bit that has so many below it; 8 if there is none. */
#define RANK(bits, lane) BITS((bits) & ((1u << (lane)) - 1))
#define UP_TO(bits, lane, rank) (RANK(bits, (lane) + 1) <= (rank))
#define SELECT(bits, rank)                                                                         \
    (UP_TO(bits, 0, rank) + UP_TO(bits, 1, rank) + UP_TO(bits, 2, rank) + UP_TO(bits, 3, rank) +   \
     UP_TO(bits, 4, rank) + UP_TO(bits, 5, rank) + UP_TO(bits, 6, rank) + UP_TO(bits, 7, rank))

/* Where a byte of the result comes from. */
#define EXPAND(bits, size, byte)                                                                   \
    ((bits) >> (byte) / (size) & 1 ? RANK(bits, (byte) / (size)) * (size) + (byte) % (size) : ENDOR_NONE)
#define COMPRESS(bits, size, byte)                                                                 \
    ((byte) / (size) < BITS(bits) ? SELECT(bits, (byte) / (size)) * (size) + (byte) % (size) : ENDOR_NONE)

#define BYTES_8(of, bits, size, at)                                                                \
    of(bits, size, at), of(bits, size, at + 1), of(bits, size, at + 2), of(bits, size, at + 3),    \
        of(bits, size, at + 4), of(bits, size, at + 5), of(bits, size, at + 6), of(bits, size, at + 7)
#define ROW_8(of, bits, size) {BYTES_8(of, bits, size, 0)}
#define ROW_16(of, bits, size) {BYTES_8(of, bits, size, 0), BYTES_8(of, bits, size, 8)}
#define ROWS_4(row, of, bits, size)                                                                \
    row(of, bits, size), row(of, bits + 1, size), row(of, bits + 2, size), row(of, bits + 3, size)
#define ROWS_16(row, of, bits, size)                                                               \
    ROWS_4(row, of, bits, size), ROWS_4(row, of, bits + 4, size), ROWS_4(row, of, bits + 8, size), \
        ROWS_4(row, of, bits + 12, size)
#define ROWS_64(row, of, bits, size)                                                               \
    ROWS_16(row, of, bits, size), ROWS_16(row, of, bits + 16, size),                               \
        ROWS_16(row, of, bits + 32, size), ROWS_16(row, of, bits + 48, size)
#define ROWS_256(row, of, size)                                                                    \
    ROWS_64(row, of, 0, size), ROWS_64(row, of, 64, size), ROWS_64(row, of, 128, size),            \
        ROWS_64(row, of, 192, size)

#define TABLES(of)                                                                                 \
    {                                                                                              \
        {ROWS_256(ROW_8, of, 1)}, {ROWS_256(ROW_16, of, 2)}, {ROWS_16(ROW_16, of, 0, 4)}, {        \
            ROWS_4(ROW_16, of, 0, 8)                                                               \
        }                                                                                          \
    }

const shuffles endor_expanding = TABLES(EXPAND), endor_compressing = TABLES(COMPRESS);
