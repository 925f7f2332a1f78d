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

TARGET INLINE void put_wide(uint8_t *out, wide v) { _mm256_storeu_si256((void *)out, v); }
TARGET INLINE wide both(wide a, wide b) { return _mm256_and_si256(a, b); }
#define LANES(size, bits, shifted)                                                                 \
    TARGET INLINE wide all_##size(unsigned number) { return _mm256_set1_epi##bits((int##bits##_t)number); } \
    TARGET INLINE wide plus_##size(wide a, wide b) { return _mm256_add_epi##bits(a, b); }          \
    TARGET INLINE wide minus_##size(wide a, wide b) { return _mm256_sub_epi##bits(a, b); }         \
    TARGET INLINE wide left_##size(wide v, unsigned by) {                                          \
        return _mm256_sll_epi##shifted(v, _mm_cvtsi32_si128((int)by));                             \
    }                                                                                              \
    TARGET INLINE wide right_##size(wide v, unsigned by) {                                         \
        return _mm256_srl_epi##shifted(v, _mm_cvtsi32_si128((int)by));                             \
    }                                                                                              \
    TARGET INLINE wide at_most_##size(wide a, wide b) {                                            \
        return _mm256_cmpeq_epi##bits(_mm256_min_epu##bits(a, b), a);                              \
    }
LANES(1, 8, 16)
LANES(2, 16, 16)
LANES(4, 32, 32)
#undef LANES

/* What goes through both halves of a wide vector alike, is put in order. */
TARGET INLINE void in_order(wide v[2], wide low, wide high) {
    v[0] = _mm256_permute2x128_si256(low, high, 0x20);
    v[1] = _mm256_permute2x128_si256(low, high, 0x31);
}
TARGET INLINE void zip_1(wide v[2]) { in_order(v, _mm256_unpacklo_epi8(v[0], v[1]), _mm256_unpackhi_epi8(v[0], v[1])); }
TARGET INLINE void zip_2(wide v[2]) { in_order(v, _mm256_unpacklo_epi16(v[0], v[1]), _mm256_unpackhi_epi16(v[0], v[1])); }
TARGET INLINE void unzip_1(wide v[2]) {
    const wide low = _mm256_set1_epi16(0xFF);
    wide even = _mm256_packus_epi16(both(v[0], low), both(v[1], low));
    wide odd = _mm256_packus_epi16(_mm256_srli_epi16(v[0], 8), _mm256_srli_epi16(v[1], 8));
    v[0] = _mm256_permute4x64_epi64(even, 0xD8);
    v[1] = _mm256_permute4x64_epi64(odd, 0xD8);
}
TARGET INLINE void unzip_2(wide v[2]) {
    const wide low = _mm256_set1_epi32(0xFFFF);
    wide even = _mm256_packus_epi32(both(v[0], low), both(v[1], low));
    wide odd = _mm256_packus_epi32(_mm256_srli_epi32(v[0], 16), _mm256_srli_epi32(v[1], 16));
    v[0] = _mm256_permute4x64_epi64(even, 0xD8);
    v[1] = _mm256_permute4x64_epi64(odd, 0xD8);
}
TARGET INLINE wide ones_at(const uint8_t *row) {
    const wide places = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const wide bits = _mm256_set1_epi64x((long long)0x8040201008040201);
    int some;
    memcpy(&some, row, sizeof some);
    return _mm256_cmpeq_epi8(both(_mm256_shuffle_epi8(_mm256_set1_epi32(some), places), bits), bits);
}
TARGET INLINE uint32_t bits_at(wide v, unsigned q) { return (uint32_t)_mm256_movemask_epi8(left_2(v, 7 - q)); }

TARGET INLINE uint64_t any_bits(const uint8_t *p, unsigned size) {
    wide even = _mm256_setzero_si256(), odd = even;
    for (size_t i = 0; i < size; i += 64) {
        even = either(even, load_wide(p + i));
        odd = either(odd, load_wide(p + i + 32));
    }
    even = either(even, odd);
    vector any = _mm_or_si128(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    return (uint64_t)(_mm_cvtsi128_si64(any) | _mm_extract_epi64(any, 1));
}

#define FEW 32
TARGET INLINE unsigned same(const uint8_t *bytes, unsigned count, uint8_t byte) {
    wide sums = _mm256_setzero_si256(), sought = all_1(byte);
    for (unsigned i = 0; i < count; i += 32) sums = minus_1(sums, _mm256_cmpeq_epi8(load_wide(bytes + i), sought));
    sums = _mm256_sad_epu8(sums, _mm256_setzero_si256());
    vector sum = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return (unsigned)(_mm_extract_epi16(sum, 0) + _mm_extract_epi16(sum, 4));
}

TARGET INLINE void move(const uint8_t *from, uint8_t *out, int stream) {
    for (unsigned i = 0; i < 64; i += 16) put(out + i, load(from + i), stream);
}

#include "target.h"
#endif
