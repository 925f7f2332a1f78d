/* The AVX-512 target: expand and compress are instructions there.
 *
 * Traps of Zen 4 and 5 are kept out of: the zero-masked form of expand waits for what was in its destination before
 * (LLVM #206849), so the merged form is used on a register that has just been zeroed; expand from memory and compress
 * to memory are microcoded, so both are done between registers. HIDDEN keeps the compiler from undoing that.
 */
#include "kernels.h"

#ifdef ENDOR_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")))
#define INLINE static inline __attribute__((always_inline))

/* Makes the compiler forget what it knows of a register. */
#define HIDDEN(register) __asm__("" : "+v"(register))

/* Elements of a vector. */
#define LANES(size) (64 / (size))

/* For each size of element: mask type, expand, compress, lanes that are not zero, masked load and store. */
#define VECTOR(size, mask, suffix)                                                                 \
    TARGET INLINE __m512i expand_##size(mask m, __m512i v) {                                       \
        __m512i zero = _mm512_setzero_si512();                                                     \
        HIDDEN(zero);                                                                              \
        HIDDEN(v);                                                                                 \
        return _mm512_mask_expand_##suffix(zero, m, v);                                            \
    }                                                                                              \
    TARGET INLINE __m512i compress_##size(mask m, __m512i v) {                                     \
        return _mm512_maskz_compress_##suffix(m, v);                                               \
    }                                                                                              \
    TARGET INLINE mask filled_##size(__m512i v) { return _mm512_test_##suffix##_mask(v, v); }      \
    TARGET INLINE __m512i load_##size(mask m, const void *p) {                                     \
        return _mm512_maskz_loadu_##suffix(m, p);                                                  \
    }                                                                                              \
    TARGET INLINE void store_##size(mask m, void *p, __m512i v) {                                  \
        _mm512_mask_storeu_##suffix(p, m, v);                                                      \
    }                                                                                              \
    INLINE mask lowest_##size(unsigned lanes) {                                                    \
        return (mask)(lanes >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << lanes) - 1);                    \
    }

VECTOR(1, __mmask64, epi8)
VECTOR(2, __mmask32, epi16)
VECTOR(4, __mmask16, epi32)
VECTOR(8, __mmask8, epi64)

#define AVX512_KERNELS(size, mask)                                                                 \
    /* Whether any of `count` elements that lie one behind the other is zero. */                   \
    TARGET INLINE int any_zero_##size(const uint8_t *values, unsigned count) {                     \
        mask zero = 0;                                                                             \
        unsigned i = 0;                                                                            \
        for (; i + LANES(size) <= count; i += LANES(size))                                         \
            zero |= (mask)~filled_##size(_mm512_loadu_si512(values + (size_t)i * (size)));         \
        mask rest = lowest_##size(count - i);                                                      \
        zero |= (mask)(rest & (mask)~filled_##size(load_##size(rest, values + (size_t)i * (size)))); \
        return zero != 0;                                                                          \
    }                                                                                              \
                                                                                                   \
    TARGET INLINE int expand_any_##size(                                                           \
        const uint64_t *bits, unsigned count, const uint8_t *values, const uint8_t *end,           \
        uint8_t *out, int stream) {                                                                \
        const uint8_t *at = values;                                                                \
        unsigned i = 0;                                                                            \
        /* Whole words of the bitmap, as long as the values go on for a word with all bits set. */ \
        for (; i + 64 <= count && end - at >= 64 * (size); i += 64) {                              \
            uint64_t word = bits[i / 64];                                                          \
            for (unsigned j = 0; j < 64; j += LANES(size)) {                                       \
                mask m = (mask)(word >> j);                                                        \
                /* Counted from the start of the word: no vector waits for the one before. */      \
                int before = __builtin_popcountll(word & ((UINT64_C(1) << j) - 1));                \
                __m512i dense = expand_##size(m, _mm512_loadu_si512(at + before * (size)));        \
                if (stream)                                                                        \
                    _mm512_stream_si512((void *)(out + (size_t)(i + j) * (size)), dense);          \
                else                                                                               \
                    _mm512_storeu_si512(out + (size_t)(i + j) * (size), dense);                    \
            }                                                                                      \
            at += __builtin_popcountll(word) * (size);                                             \
        }                                                                                          \
        /* Then just the elements that are there. */                                               \
        for (; i < count; i += LANES(size)) {                                                      \
            mask m = (mask)(bits[i / 64] >> (i % 64));                                             \
            unsigned ones = (unsigned)__builtin_popcountll(m);                                     \
            __m512i dense = expand_##size(m, load_##size(lowest_##size(ones), at));                \
            at += ones * (size);                                                                   \
            store_##size(lowest_##size(count - i), out + (size_t)i * (size), dense);               \
        }                                                                                          \
        return any_zero_##size(values, (unsigned)(at - values) / (size));                          \
    }                                                                                              \
                                                                                                   \
    TARGET static int expand_block_##size(                                                         \
        const uint64_t bits[BLOCK_WORDS], unsigned count, const uint8_t *values,                   \
        const uint8_t *end, uint8_t *out, int stream) {                                            \
        /* Two loops, each without the question. */                                                \
        return stream ? expand_any_##size(bits, count, values, end, out, 1)                        \
                      : expand_any_##size(bits, count, values, end, out, 0);                       \
    }                                                                                              \
                                                                                                   \
    TARGET static unsigned compress_block_##size(                                                  \
        const uint8_t *dense, unsigned count, uint64_t bits[BLOCK_WORDS], uint8_t *values,         \
        const uint8_t *end) {                                                                      \
        unsigned stored = 0;                                                                       \
        for (unsigned i = 0; i < count; i += LANES(size)) {                                        \
            unsigned lanes = count - i;                                                            \
            __m512i v = lanes >= LANES(size) ? _mm512_loadu_si512(dense + i * (size))              \
                                             : load_##size(lowest_##size(lanes), dense + i * (size)); \
            mask m = filled_##size(v);                                                             \
            unsigned ones = (unsigned)__builtin_popcountll(m);                                     \
            __m512i packed = compress_##size(m, v);                                                \
            if (i % 64 == 0) bits[i / 64] = 0;                                                     \
            bits[i / 64] |= (uint64_t)m << (i % 64);                                               \
            stored += ones;                                                                        \
            if (end - values >= 64)                                                                \
                _mm512_storeu_si512(values, packed);                                               \
            else if (ones * (size) <= (size_t)(end - values))                                      \
                store_##size(lowest_##size(ones), values, packed);                                 \
            else                                                                                   \
                return ENDOR_BLOCK + 1;                                                            \
            values += ones * (size);                                                               \
        }                                                                                          \
        return stored;                                                                             \
    }                                                                                              \
                                                                                                   \
    TARGET static unsigned count_block_##size(const uint8_t *dense, unsigned count) {              \
        unsigned stored = 0;                                                                       \
        for (unsigned i = 0; i < count; i += LANES(size)) {                                        \
            unsigned lanes = count - i;                                                            \
            __m512i v = lanes >= LANES(size) ? _mm512_loadu_si512(dense + i * (size))              \
                                             : load_##size(lowest_##size(lanes), dense + i * (size)); \
            stored += (unsigned)__builtin_popcountll(filled_##size(v));                            \
        }                                                                                          \
        return stored;                                                                             \
    }

AVX512_KERNELS(1, __mmask64)
AVX512_KERNELS(2, __mmask32)
AVX512_KERNELS(4, __mmask16)
AVX512_KERNELS(8, __mmask8)

TARGET static unsigned ones(const uint64_t bits[BLOCK_WORDS]) {
    unsigned ones = 0;
    for (unsigned i = 0; i < BLOCK_WORDS; i++) ones += (unsigned)__builtin_popcountll(bits[i]);
    return ones;
}

const kernels endor_avx512 = {
    ones,
    {expand_block_1, expand_block_2, expand_block_4, expand_block_8},
    {compress_block_1, compress_block_2, compress_block_4, compress_block_8},
    {count_block_1, count_block_2, count_block_4, count_block_8},
};
#endif
