/* The scalar target: plain C, for every machine, and what the others are compared with. */
#include "shuffle.h"

#define TARGET
#define KERNELS endor_scalar
#define WORDS "scalar_words.h"
#define WIDEST ENDOR_STREAM_ALIGNMENT
#define FENCE() ((void)0)
#define ONES(word) (ones_up_to(word) >> 56)

/* Not every processor has an instruction for it: the number of 1 bits of each byte, and of all bytes up to each. */
INLINE uint64_t ones_up_to(uint64_t word) {
    word -= word >> 1 & UINT64_C(0x5555555555555555);
    word = (word & UINT64_C(0x3333333333333333)) + (word >> 2 & UINT64_C(0x3333333333333333));
    word = (word + (word >> 4)) & UINT64_C(0x0F0F0F0F0F0F0F0F);
    return word * UINT64_C(0x0101010101010101);
}

/* Bits of a byte to bytes that are 0 or 1, and back. */
INLINE uint64_t bytes_of_bits(uint8_t bits) {
    uint64_t picked = bits * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201);
    return (picked + UINT64_C(0x7F7F7F7F7F7F7F7F)) >> 7 & UINT64_C(0x0101010101010101);
}
INLINE uint8_t bits_of_bytes(uint64_t bytes) {
    return (uint8_t)((bytes & UINT64_C(0x0101010101010101)) * UINT64_C(0x0102040810204080) >> 56);
}

INLINE void bytes_of(const uint8_t *rows, unsigned count, uint8_t plane[64]) {
    for (unsigned j = 0; j < 8; j++) {
        uint64_t bytes = 0;
        for (unsigned q = 0; q < count; q++) bytes |= bytes_of_bits(rows[8 * q + j]) << q;
        memcpy(plane + 8 * j, &bytes, sizeof bytes);
    }
}

INLINE void rows_of(const uint8_t plane[64], unsigned count, uint8_t *rows) {
    for (unsigned j = 0; j < 8; j++) {
        uint64_t bytes;
        memcpy(&bytes, plane + 8 * j, sizeof bytes);
        for (unsigned q = 0; q < count; q++) rows[8 * q + j] = bits_of_bytes(bytes >> q);
    }
}

INLINE uint64_t any_bits(const uint8_t *p, unsigned size) {
    uint64_t any = 0, word;
    for (size_t i = 0; i < size; i += sizeof word) {
        memcpy(&word, p + i, sizeof word);
        any |= word;
    }
    return any;
}

/* Nothing is faster than tables. */
#define FEW -1
INLINE unsigned same(const uint8_t *bytes, unsigned count, uint8_t byte) {
    unsigned found = 0;
    for (unsigned i = 0; i < count; i++) found += bytes[i] == byte;
    return found;
}

INLINE void move(const uint8_t *from, uint8_t *out, int stream) {
    (void)stream;
    memcpy(out, from, 64);
}

#include "target.h"
