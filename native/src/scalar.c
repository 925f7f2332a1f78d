/* The scalar target: plain C, for every machine, and what the others are compared with. */
#include "kernels.h"

#define NAME(operation, type) operation##_##type

#define SCALAR_KERNELS(type)                                                                       \
    static int NAME(expand, type)(                                                                 \
        const uint64_t bits[BLOCK_WORDS], unsigned count, const uint8_t *values,                   \
        const uint8_t *end, uint8_t *out, int stream) {                                            \
        int zero = 0;                                                                              \
        (void)end;                                                                                 \
        (void)stream;                                                                              \
        memset(out, 0, count * sizeof(type));                                                      \
        for (unsigned word = 0; word * 64 < count; word++) {                                       \
            uint8_t *line = out + word * 64 * sizeof(type);                                        \
            for (uint64_t left = bits[word]; left != 0; left &= left - 1) {                        \
                type element;                                                                      \
                memcpy(&element, values, sizeof element);                                          \
                values += sizeof element;                                                          \
                zero |= element == 0;                                                              \
                memcpy(line + (unsigned)__builtin_ctzll(left) * sizeof element, &element,          \
                       sizeof element);                                                            \
            }                                                                                      \
        }                                                                                          \
        return zero;                                                                               \
    }                                                                                              \
                                                                                                   \
    static unsigned NAME(compress, type)(                                                          \
        const uint8_t *dense, unsigned count, uint64_t bits[BLOCK_WORDS], uint8_t *values,         \
        const uint8_t *end) {                                                                      \
        unsigned stored = 0;                                                                       \
        size_t room = (size_t)(end - values) / sizeof(type);                                       \
        for (unsigned i = 0; i < count; i++) {                                                     \
            type element;                                                                          \
            memcpy(&element, dense + i * sizeof element, sizeof element);                          \
            if (i % 64 == 0) bits[i / 64] = 0;                                                     \
            bits[i / 64] |= (uint64_t)(element != 0) << (i % 64);                                  \
            /* Written in any case, and overwritten if it was zero: no branch to mispredict. */    \
            if (stored < room) memcpy(values + stored * sizeof element, &element, sizeof element); \
            stored += element != 0;                                                                \
        }                                                                                          \
        return stored;                                                                             \
    }                                                                                              \
                                                                                                   \
    static unsigned NAME(count, type)(const uint8_t *dense, unsigned count) {                      \
        unsigned stored = 0;                                                                       \
        for (unsigned i = 0; i < count; i++) {                                                     \
            type element;                                                                          \
            memcpy(&element, dense + i * sizeof element, sizeof element);                          \
            stored += element != 0;                                                                \
        }                                                                                          \
        return stored;                                                                             \
    }

SCALAR_KERNELS(uint8_t)
SCALAR_KERNELS(uint16_t)
SCALAR_KERNELS(uint32_t)
SCALAR_KERNELS(uint64_t)

static unsigned ones(const uint64_t bits[BLOCK_WORDS]) {
    unsigned ones = 0;
    for (unsigned i = 0; i < BLOCK_WORDS; i++) {
        /* Not every processor has an instruction for it. */
        uint64_t word = bits[i];
        word -= word >> 1 & UINT64_C(0x5555555555555555);
        word = (word & UINT64_C(0x3333333333333333)) + (word >> 2 & UINT64_C(0x3333333333333333));
        word = (word + (word >> 4)) & UINT64_C(0x0F0F0F0F0F0F0F0F);
        ones += (unsigned)(word * UINT64_C(0x0101010101010101) >> 56);
    }
    return ones;
}

const kernels endor_scalar = {
    ones,
    {expand_uint8_t, expand_uint16_t, expand_uint32_t, expand_uint64_t},
    {compress_uint8_t, compress_uint16_t, compress_uint32_t, compress_uint64_t},
    {count_uint8_t, count_uint16_t, count_uint32_t, count_uint64_t},
};
