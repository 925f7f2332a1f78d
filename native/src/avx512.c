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

#include "target.h"
#endif
