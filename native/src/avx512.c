/* The AVX-512 target: expand and compress are instructions there.
 *
 * Traps of Zen 4 and 5 are kept out: the zero-masked form of expand waits for what was in its destination before
 * (LLVM #206849), so the merged form is used on a register that has just been zeroed; expand from memory and compress
 * to memory are microcoded, so both are done between registers. HIDDEN keeps the compiler from undoing that.
 */
#include "kernels.h"

#ifdef ENDOR_X86
#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")))
#define KERNELS endor_avx512
#define WORDS "avx512_words.h"
#define ONES(word) __builtin_popcountll(word)
#define WIDEST 64
#define FENCE() _mm_sfence()

/* Makes the compiler forget what it knows of a register. */
#define HIDDEN(register) __asm__("" : "+v"(register))

/* The intrinsics of each size. */
#define VECTOR(size, mask, suffix)                                                                 \
    typedef mask mask_##size;                                                                      \
    TARGET INLINE __m512i expanded_##size(mask m, __m512i v) {                                     \
        __m512i zero = _mm512_setzero_si512();                                                     \
        HIDDEN(zero);                                                                              \
        HIDDEN(v);                                                                                 \
        return _mm512_mask_expand_##suffix(zero, m, v);                                            \
    }                                                                                              \
    TARGET INLINE __m512i compressed_##size(mask m, __m512i v) {                                   \
        return _mm512_maskz_compress_##suffix(m, v);                                               \
    }                                                                                              \
    TARGET INLINE mask filled_##size(__m512i v) { return _mm512_test_##suffix##_mask(v, v); }      \
    TARGET INLINE mask zeros_##size(__m512i v) { return _mm512_testn_##suffix##_mask(v, v); }

VECTOR(1, __mmask64, epi8)
VECTOR(2, __mmask32, epi16)
VECTOR(4, __mmask16, epi32)
VECTOR(8, __mmask8, epi64)

/* Of those sizes that are split. Bytes are shifted in pairs: what comes from the other one has to be masked off. */
#define SPLIT_VECTOR(size, bits, shifted)                                                          \
    TARGET INLINE __m512i all_##size(unsigned element) { return _mm512_set1_epi##bits((int##bits##_t)element); } \
    TARGET INLINE __m512i left_##size(__m512i v, unsigned by) {                                    \
        return _mm512_sll_epi##shifted(v, _mm_cvtsi32_si128((int)by));                             \
    }                                                                                              \
    TARGET INLINE __m512i right_##size(__m512i v, unsigned by) {                                   \
        return _mm512_srl_epi##shifted(v, _mm_cvtsi32_si128((int)by));                             \
    }                                                                                              \
    TARGET INLINE __m512i added_##size(mask_##size m, __m512i v, __m512i w) {                      \
        return _mm512_mask_add_epi##bits(v, m, v, w);                                              \
    }                                                                                              \
    TARGET INLINE __m512i less_##size(__m512i v, __m512i w) { return _mm512_sub_epi##bits(v, w); } \
    TARGET INLINE __m512i masked_##size(mask_##size m, __m512i v) { return _mm512_maskz_mov_epi##bits(m, v); }   \
    TARGET INLINE mask_##size below_##size(__m512i v, __m512i w) { return _mm512_cmplt_epu##bits##_mask(v, w); } \
    TARGET INLINE mask_##size common_##size(__m512i v, __m512i w) { return _mm512_test_epi##bits##_mask(v, w); }

SPLIT_VECTOR(1, 8, 16)
SPLIT_VECTOR(2, 16, 16)
SPLIT_VECTOR(4, 32, 32)

/* As many bytes as a vector has elements, to the lower ends of these, and back. */
TARGET INLINE __m512i widened_1(const uint8_t *p) { return _mm512_loadu_si512(p); }
TARGET INLINE __m512i widened_2(const uint8_t *p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)p)); }
TARGET INLINE __m512i widened_4(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)); }
TARGET INLINE void narrowed_1(uint8_t *out, __m512i v) { _mm512_storeu_si512(out, v); }
TARGET INLINE void narrowed_2(uint8_t *out, __m512i v) { _mm256_storeu_si256((void *)out, _mm512_cvtepi16_epi8(v)); }
TARGET INLINE void narrowed_4(uint8_t *out, __m512i v) { _mm_storeu_si128((void *)out, _mm512_cvtepi32_epi8(v)); }

/* (a & b) | c */
TARGET INLINE __m512i and_or(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0xEA); }

TARGET INLINE void put(uint8_t *out, __m512i v, int stream) {
    if (stream == WIDEST) {
        _mm512_stream_si512((void *)out, v);
    } else if (stream) {
        _mm_stream_si128((void *)out, _mm512_castsi512_si128(v));
        _mm_stream_si128((void *)(out + 16), _mm512_extracti32x4_epi32(v, 1));
        _mm_stream_si128((void *)(out + 32), _mm512_extracti32x4_epi32(v, 2));
        _mm_stream_si128((void *)(out + 48), _mm512_extracti32x4_epi32(v, 3));
    } else {
        _mm512_storeu_si512((void *)out, v);
    }
}

TARGET INLINE uint64_t any_bits(const uint8_t *p, unsigned size) {
    __m512i any = _mm512_setzero_si512();
    for (size_t i = 0; i < size; i += 64) any = _mm512_or_si512(any, _mm512_loadu_si512(p + i));
    return (uint64_t)_mm512_reduce_or_epi64(any);
}

#define FEW 32
TARGET INLINE unsigned same(const uint8_t *bytes, unsigned count, uint8_t byte) {
    __m512i sums = _mm512_setzero_si512(), sought = _mm512_set1_epi8((char)byte), one = _mm512_set1_epi8(1);
    for (unsigned i = 0; i < count; i += 64)
        sums = _mm512_mask_add_epi8(sums, _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(bytes + i), sought), sums, one);
    return (unsigned)_mm512_reduce_add_epi64(_mm512_sad_epu8(sums, _mm512_setzero_si512()));
}

TARGET INLINE void move(const uint8_t *from, uint8_t *out, int stream) {
    put(out, _mm512_loadu_si512(from), stream);
}

#include "target.h"
#endif
