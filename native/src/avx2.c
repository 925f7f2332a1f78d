/* The AVX2 target: 8 elements at a time, moved to their places by shuffles that a byte of the bitmap looks up.
 *
 * Near the end of the values, where a whole vector would be read or written past it, and for the last elements of a
 * tensor that do not fill a byte, elements are moved one by one.
 */
#include "kernels.h"

#ifdef ENDOR_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,popcnt")))
#define INLINE static inline __attribute__((always_inline))

/* Where each of 8 lanes takes its element from when expanding, and where each stored element comes from when
 * compressing; -128 for nowhere, which shuffles turn into 0. The same in pairs of bytes, and for 4 lanes in pairs of
 * 32-bit halves. */
static int8_t expand8[256][8], compress8[256][8];
static int8_t expand16[256][16], compress16[256][16];
static int8_t expand64[16][8], compress64[16][8];

__attribute__((constructor)) static void fill_tables(void) {
    memset(expand8, -128, sizeof expand8);
    memset(compress8, -128, sizeof compress8);
    memset(expand16, -128, sizeof expand16);
    memset(compress16, -128, sizeof compress16);
    memset(expand64, -128, sizeof expand64);
    memset(compress64, -128, sizeof compress64);
    for (int bits = 0; bits < 256; bits++) {
        int8_t rank = 0;
        for (int8_t lane = 0; lane < 8; lane++) {
            if (!(bits >> lane & 1)) continue;
            expand8[bits][lane] = rank;
            compress8[bits][rank] = lane;
            for (int half = 0; half < 2; half++) {
                expand16[bits][2 * lane + half] = (int8_t)(2 * rank + half);
                compress16[bits][2 * rank + half] = (int8_t)(2 * lane + half);
                if (bits < 16) {
                    expand64[bits][2 * lane + half] = (int8_t)(2 * rank + half);
                    compress64[bits][2 * rank + half] = (int8_t)(2 * lane + half);
                }
            }
            rank++;
        }
    }
}

TARGET static unsigned ones(const uint64_t bits[BLOCK_WORDS]) {
    unsigned ones = 0;
    for (unsigned i = 0; i < BLOCK_WORDS; i++) ones += (unsigned)__builtin_popcountll(bits[i]);
    return ones;
}

INLINE int is_zero(const uint8_t *element, unsigned size) {
    uint64_t word = 0;
    memcpy(&word, element, size);
    return word == 0;
}

/* The elements from `i` on, one by one. */
INLINE void expand_rest(
    const uint64_t *bits, unsigned i, unsigned count, const uint8_t *values, uint8_t *out,
    unsigned size) {
    memset(out + (size_t)i * size, 0, (size_t)(count - i) * size);
    for (; i < count; i++) {
        if (bits[i / 64] >> (i % 64) & 1) {
            memcpy(out + (size_t)i * size, values, size);
            values += size;
        }
    }
}

INLINE unsigned compress_rest(
    const uint8_t *dense, unsigned i, unsigned count, uint64_t *bits, uint8_t *values,
    const uint8_t *end, unsigned size) {
    unsigned stored = 0;
    for (; i < count; i++) {
        if (i % 64 == 0) bits[i / 64] = 0;
        if (is_zero(dense + (size_t)i * size, size)) continue;
        if ((size_t)(end - values) < size) return ENDOR_BLOCK + 1;
        memcpy(values, dense + (size_t)i * size, size);
        values += size;
        bits[i / 64] |= UINT64_C(1) << (i % 64);
        stored++;
    }
    return stored;
}

/* Lanes of a vector that are zero, as bits. */
TARGET INLINE unsigned zeros_1(const uint8_t *p) {
    __m128i v = _mm_loadl_epi64((const void *)p);
    return (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_setzero_si128())) & 0xFF;
}
TARGET INLINE unsigned zeros_2(const uint8_t *p) {
    __m128i v = _mm_cmpeq_epi16(_mm_loadu_si128((const void *)p), _mm_setzero_si128());
    return (unsigned)_mm_movemask_epi8(_mm_packs_epi16(v, v)) & 0xFF;
}
TARGET INLINE unsigned zeros_4(const uint8_t *p) {
    __m256i v = _mm256_cmpeq_epi32(_mm256_loadu_si256((const void *)p), _mm256_setzero_si256());
    return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(v));
}
TARGET INLINE unsigned zeros_8(const uint8_t *p) {
    __m256i zero = _mm256_setzero_si256();
    __m256i low = _mm256_cmpeq_epi64(_mm256_loadu_si256((const void *)p), zero);
    __m256i high = _mm256_cmpeq_epi64(_mm256_loadu_si256((const void *)(p + 32)), zero);
    return (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(low)) |
           (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(high)) << 4;
}

/* 8 elements from `values` to their places. */
TARGET INLINE __m128i expand8_1(const uint8_t *values, unsigned byte) {
    __m128i places = _mm_loadl_epi64((const void *)expand8[byte]);
    return _mm_shuffle_epi8(_mm_loadl_epi64((const void *)values), places);
}
TARGET INLINE __m256i permute(__m256i v, const int8_t *places) {
    __m256i from = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)places));
    /* The permutation looks at three bits of each place only: what comes from nowhere is cleared. */
    return _mm256_andnot_si256(_mm256_srai_epi32(from, 31), _mm256_permutevar8x32_epi32(v, from));
}
TARGET INLINE void put_128(uint8_t *out, __m128i v, int stream) {
    if (stream)
        _mm_stream_si128((void *)out, v);
    else
        _mm_storeu_si128((void *)out, v);
}
TARGET INLINE void put_256(uint8_t *out, __m256i v, int stream) {
    if (stream)
        _mm256_stream_si256((void *)out, v);
    else
        _mm256_storeu_si256((void *)out, v);
}

/* 16 elements, as 8 of one byte are too few for a store that streams. */
TARGET INLINE void expand_1(
    const uint8_t *values, unsigned byte, unsigned next, uint8_t *out, int stream) {
    __m128i low = expand8_1(values, byte);
    __m128i high = expand8_1(values + __builtin_popcount(byte), next);
    put_128(out, _mm_unpacklo_epi64(low, high), stream);
}
TARGET INLINE void expand_2(const uint8_t *values, unsigned byte, uint8_t *out, int stream) {
    __m128i v = _mm_loadu_si128((const void *)values);
    put_128(out, _mm_shuffle_epi8(v, _mm_loadu_si128((const void *)expand16[byte])), stream);
}
TARGET INLINE void expand_4(const uint8_t *values, unsigned byte, uint8_t *out, int stream) {
    put_256(out, permute(_mm256_loadu_si256((const void *)values), expand8[byte]), stream);
}
TARGET INLINE void expand_8(const uint8_t *values, unsigned byte, uint8_t *out, int stream) {
    unsigned low = byte & 15, high = byte >> 4;
    __m256i first = _mm256_loadu_si256((const void *)values);
    __m256i then = _mm256_loadu_si256((const void *)(values + 8 * __builtin_popcount(low)));
    put_256(out, permute(first, expand64[low]), stream);
    put_256(out + 32, permute(then, expand64[high]), stream);
}

/* Elements of 8 lanes that are stored, to `values`; up to a whole vector is written. */
TARGET INLINE void compress_1(const uint8_t *dense, unsigned byte, uint8_t *values) {
    __m128i v = _mm_loadl_epi64((const void *)dense);
    __m128i from = _mm_loadl_epi64((const void *)compress8[byte]);
    _mm_storel_epi64((void *)values, _mm_shuffle_epi8(v, from));
}
TARGET INLINE void compress_2(const uint8_t *dense, unsigned byte, uint8_t *values) {
    __m128i v = _mm_loadu_si128((const void *)dense);
    __m128i from = _mm_loadu_si128((const void *)compress16[byte]);
    _mm_storeu_si128((void *)values, _mm_shuffle_epi8(v, from));
}
TARGET INLINE void compress_4(const uint8_t *dense, unsigned byte, uint8_t *values) {
    __m256i v = _mm256_loadu_si256((const void *)dense);
    _mm256_storeu_si256((void *)values, permute(v, compress8[byte]));
}
TARGET INLINE void compress_8(const uint8_t *dense, unsigned byte, uint8_t *values) {
    unsigned low = byte & 15, high = byte >> 4;
    __m256i first = _mm256_loadu_si256((const void *)dense);
    __m256i then = _mm256_loadu_si256((const void *)(dense + 32));
    _mm256_storeu_si256((void *)values, permute(first, compress64[low]));
    values += 8 * __builtin_popcount(low);
    _mm256_storeu_si256((void *)values, permute(then, compress64[high]));
}

/* Whether any of `count` elements that lie one behind the other is zero. */
#define ANY_ZERO(size)                                                                             \
    TARGET INLINE int any_zero_##size(const uint8_t *values, unsigned count) {                     \
        unsigned found = 0, i = 0;                                                                 \
        for (; i + 8 <= count; i += 8) found |= zeros_##size(values + (size_t)i * (size));         \
        for (; i < count; i++) found |= (unsigned)is_zero(values + (size_t)i * (size), size);      \
        return found != 0;                                                                         \
    }
ANY_ZERO(1)
ANY_ZERO(2)
ANY_ZERO(4)
ANY_ZERO(8)

/* 64 elements, from a word of the bitmap. */
#define EXPAND_WORD(size)                                                                          \
    TARGET INLINE const uint8_t *expand_word_##size(                                               \
        uint64_t word, const uint8_t *at, uint8_t *out, int stream) {                              \
        for (unsigned j = 0; j < 64; j += 8) {                                                     \
            unsigned byte = (unsigned)(word >> j) & 0xFF;                                          \
            /* Counted from the start of the word, so that no byte waits for the one before. */    \
            int before = __builtin_popcountll(word & ((UINT64_C(1) << j) - 1));                    \
            expand_##size(at + (size) * before, byte, out + (size_t)j * (size), stream);           \
        }                                                                                          \
        return at + (size) * __builtin_popcountll(word);                                           \
    }
EXPAND_WORD(2)
EXPAND_WORD(4)
EXPAND_WORD(8)

TARGET INLINE const uint8_t *expand_word_1(
    uint64_t word, const uint8_t *at, uint8_t *out, int stream) {
    for (unsigned j = 0; j < 64; j += 16) {
        unsigned byte = (unsigned)(word >> j) & 0xFF, next = (unsigned)(word >> (j + 8)) & 0xFF;
        int before = __builtin_popcountll(word & ((UINT64_C(1) << j) - 1));
        expand_1(at + before, byte, next, out + j, stream);
    }
    return at + __builtin_popcountll(word);
}

#define AVX2_KERNELS(size)                                                                         \
    TARGET INLINE int expand_any_##size(                                                           \
        const uint64_t *bits, unsigned count, const uint8_t *values, const uint8_t *end,           \
        uint8_t *out, int stream) {                                                                \
        const uint8_t *at = values;                                                                \
        unsigned i = 0;                                                                            \
        /* Whole words, as long as the values go on for a word with all bits set. */               \
        for (; i + 64 <= count && end - at >= 64 * (size); i += 64)                                \
            at = expand_word_##size(bits[i / 64], at, out + (size_t)i * (size), stream);           \
        expand_rest(bits, i, count, at, out, size);                                                \
        return any_zero_##size(values, ones(bits));                                                \
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
        unsigned i = 0, stored = 0;                                                                \
        for (; i + 8 <= count && end - values >= 8 * (size); i += 8) {                             \
            unsigned byte = ~zeros_##size(dense + (size_t)i * (size)) & 0xFF;                      \
            compress_##size(dense + (size_t)i * (size), byte, values);                             \
            values += (size) * __builtin_popcount(byte);                                           \
            stored += (unsigned)__builtin_popcount(byte);                                          \
            bits[i / 64] = (i % 64 ? bits[i / 64] : 0) | (uint64_t)byte << (i % 64);               \
        }                                                                                          \
        return stored + compress_rest(dense, i, count, bits, values, end, size);                   \
    }                                                                                              \
                                                                                                   \
    TARGET static unsigned count_block_##size(const uint8_t *dense, unsigned count) {              \
        unsigned zeros = 0, i = 0;                                                                 \
        for (; i + 8 <= count; i += 8)                                                             \
            zeros += (unsigned)__builtin_popcount(zeros_##size(dense + (size_t)i * (size)));       \
        for (; i < count; i++) zeros += (unsigned)is_zero(dense + (size_t)i * (size), size);       \
        return count - zeros;                                                                      \
    }

AVX2_KERNELS(1)
AVX2_KERNELS(2)
AVX2_KERNELS(4)
AVX2_KERNELS(8)

const kernels endor_avx2 = {
    ones,
    {expand_block_1, expand_block_2, expand_block_4, expand_block_8},
    {compress_block_1, compress_block_2, compress_block_4, compress_block_8},
    {count_block_1, count_block_2, count_block_4, count_block_8},
};
#endif
