/* The AVX2 target: a shuffle of 16 bytes, and vectors of 32 where nothing has to cross their middle. */
#include "shuffle.h"

#ifdef ENDOR_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx2,popcnt")))
#define KERNELS endor_avx2
#define WORDS "shuffle_words.h"
#define ONES(word) __builtin_popcountll(word)
#define WIDEST 16
#define FENCE() _mm_sfence()

typedef __m128i vector;
typedef __m256i wide;

TARGET INLINE vector load(const uint8_t *p) { return _mm_loadu_si128((const void *)p); }
TARGET INLINE vector load_8(const uint8_t *p) { return _mm_loadl_epi64((const void *)p); }
TARGET INLINE void put_8(uint8_t *out, vector v) { _mm_storel_epi64((void *)out, v); }
TARGET INLINE void put(uint8_t *out, vector v, int stream) {
    if (stream)
        _mm_stream_si128((void *)out, v);
    else
        _mm_storeu_si128((void *)out, v);
}
TARGET INLINE vector pair(vector low, vector high) { return _mm_unpacklo_epi64(low, high); }
TARGET INLINE vector shuffle(vector v, vector places) { return _mm_shuffle_epi8(v, places); }

TARGET INLINE vector halves_16(vector a, vector b) { return _mm_packs_epi16(a, b); }
TARGET INLINE vector halves_32(vector a, vector b) { return _mm_packs_epi32(a, b); }
TARGET INLINE vector halves_64(vector a, vector b) {
    return _mm_castps_si128(_mm_shuffle_ps(_mm_castsi128_ps(a), _mm_castsi128_ps(b), 0x88));
}
TARGET INLINE vector zeros_1(vector v) { return _mm_cmpeq_epi8(v, _mm_setzero_si128()); }
TARGET INLINE vector zeros_2(vector v) { return _mm_cmpeq_epi16(v, _mm_setzero_si128()); }
TARGET INLINE vector zeros_4(vector v) { return _mm_cmpeq_epi32(v, _mm_setzero_si128()); }
TARGET INLINE vector zeros_8(vector v) { return _mm_cmpeq_epi64(v, _mm_setzero_si128()); }
TARGET INLINE uint64_t word_of_zeros(vector v0, vector v1, vector v2, vector v3) {
    uint64_t low = (unsigned)_mm_movemask_epi8(v0) | (unsigned)_mm_movemask_epi8(v1) << 16;
    uint64_t high = (unsigned)_mm_movemask_epi8(v2) | (unsigned)_mm_movemask_epi8(v3) << 16;
    return ~(low | high << 32);
}

TARGET INLINE wide load_wide(const uint8_t *p) { return _mm256_loadu_si256((const void *)p); }
TARGET INLINE wide either(wide a, wide b) { return _mm256_or_si256(a, b); }
TARGET INLINE uint64_t any_bit(wide v) { return (unsigned)_mm256_movemask_epi8(v); }
TARGET INLINE wide wide_zeros_1(wide v) { return _mm256_cmpeq_epi8(v, _mm256_setzero_si256()); }
TARGET INLINE wide wide_zeros_2(wide v) { return _mm256_cmpeq_epi16(v, _mm256_setzero_si256()); }
TARGET INLINE wide wide_zeros_4(wide v) { return _mm256_cmpeq_epi32(v, _mm256_setzero_si256()); }
TARGET INLINE wide wide_zeros_8(wide v) { return _mm256_cmpeq_epi64(v, _mm256_setzero_si256()); }

TARGET INLINE void bytes_of(const uint8_t *rows, unsigned count, uint8_t plane[64]) {
    const wide places = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const wide bits = _mm256_set1_epi64x((long long)0x8040201008040201);
    for (unsigned j = 0; j < 64; j += 32) {
        wide bytes = _mm256_setzero_si256();
        for (unsigned q = 0; q < count; q++) {
            int row;
            memcpy(&row, rows + 8 * q + j / 8, sizeof row);
            wide picked = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(row), places), bits);
            wide ones = _mm256_cmpeq_epi8(picked, bits);
            bytes = _mm256_or_si256(bytes, _mm256_and_si256(ones, _mm256_set1_epi8((char)(1 << q))));
        }
        _mm256_storeu_si256((void *)(plane + j), bytes);
    }
}

TARGET INLINE void rows_of(const uint8_t plane[64], unsigned count, uint8_t *rows) {
    for (unsigned j = 0; j < 64; j += 32)
        for (unsigned q = 0; q < count; q++) {
            int row = _mm256_movemask_epi8(_mm256_sll_epi16(load_wide(plane + j), _mm_cvtsi32_si128((int)(7 - q))));
            memcpy(rows + 8 * q + j / 8, &row, sizeof row);
        }
}

TARGET INLINE void move(const uint8_t *from, uint8_t *out, int stream) {
    for (unsigned i = 0; i < 64; i += 16) put(out + i, load(from + i), stream);
}

#include "target.h"
#endif
