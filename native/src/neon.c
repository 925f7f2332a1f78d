/* The NEON target, of 64-bit ARM: a shuffle of 16 bytes. */
#include "shuffle.h"

#ifdef ENDOR_ARM
#include <arm_neon.h>

#define TARGET
#define KERNELS endor_neon
#define WORDS "shuffle_words.h"
#define ONES(word) __builtin_popcountll(word)
#define WIDEST ENDOR_STREAM_ALIGNMENT
#define FENCE() ((void)0)

typedef uint8x16_t vector;
typedef uint8x16_t wide;

#define AS_16(v) vreinterpretq_u16_u8(v)
#define AS_32(v) vreinterpretq_u32_u8(v)
#define AS_64(v) vreinterpretq_u64_u8(v)

/* For each of 16 bytes the bit that it is in a mask. */
static const uint8_t bits_of_16[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};

INLINE vector load(const uint8_t *p) { return vld1q_u8(p); }
INLINE vector load_8(const uint8_t *p) { return vcombine_u8(vld1_u8(p), vdup_n_u8(0)); }
INLINE void put_8(uint8_t *out, vector v) { vst1_u8(out, vget_low_u8(v)); }
INLINE void put(uint8_t *out, vector v, int stream) {
    (void)stream;
    vst1q_u8(out, v);
}
INLINE vector pair(vector low, vector high) { return vcombine_u8(vget_low_u8(low), vget_low_u8(high)); }
INLINE vector shuffle(vector v, vector places) { return vqtbl1q_u8(v, places); }

INLINE vector halves_16(vector a, vector b) { return vuzp1q_u8(a, b); }
INLINE vector halves_32(vector a, vector b) { return vreinterpretq_u8_u16(vuzp1q_u16(AS_16(a), AS_16(b))); }
INLINE vector halves_64(vector a, vector b) { return vreinterpretq_u8_u32(vuzp1q_u32(AS_32(a), AS_32(b))); }
INLINE vector zeros_1(vector v) { return vceqzq_u8(v); }
INLINE vector zeros_2(vector v) { return vreinterpretq_u8_u16(vceqzq_u16(AS_16(v))); }
INLINE vector zeros_4(vector v) { return vreinterpretq_u8_u32(vceqzq_u32(AS_32(v))); }
INLINE vector zeros_8(vector v) { return vreinterpretq_u8_u64(vceqzq_u64(AS_64(v))); }
INLINE uint64_t word_of_zeros(vector v0, vector v1, vector v2, vector v3) {
    /* One bit of each byte, then sums of neighbours until 8 bytes have come together in one. */
    vector weight = vld1q_u8(bits_of_16);
    vector low = vpaddq_u8(vbicq_u8(weight, v0), vbicq_u8(weight, v1));
    vector high = vpaddq_u8(vbicq_u8(weight, v2), vbicq_u8(weight, v3));
    vector sums = vpaddq_u8(low, high);
    return vgetq_lane_u64(AS_64(vpaddq_u8(sums, sums)), 0);
}

INLINE wide load_wide(const uint8_t *p) { return vld1q_u8(p); }
INLINE wide either(wide a, wide b) { return vorrq_u8(a, b); }
INLINE uint64_t any_bit(wide v) { return vmaxvq_u8(v); }
INLINE wide wide_zeros_1(wide v) { return zeros_1(v); }
INLINE wide wide_zeros_2(wide v) { return zeros_2(v); }
INLINE wide wide_zeros_4(wide v) { return zeros_4(v); }
INLINE wide wide_zeros_8(wide v) { return zeros_8(v); }

INLINE void put_wide(uint8_t *out, wide v) { vst1q_u8(out, v); }
INLINE wide both(wide a, wide b) { return vandq_u8(a, b); }
/* Of bytes, the same in name. */
#define AS_8(v) (v)
#define vreinterpretq_u8_u8(v) (v)
#define LANES(size, bits)                                                                          \
    INLINE wide all_##size(unsigned number) {                                                      \
        return vreinterpretq_u8_u##bits(vdupq_n_u##bits((uint##bits##_t)number));                  \
    }                                                                                              \
    INLINE wide plus_##size(wide a, wide b) {                                                      \
        return vreinterpretq_u8_u##bits(vaddq_u##bits(AS_##bits(a), AS_##bits(b)));                \
    }                                                                                              \
    INLINE wide minus_##size(wide a, wide b) {                                                     \
        return vreinterpretq_u8_u##bits(vsubq_u##bits(AS_##bits(a), AS_##bits(b)));                \
    }                                                                                              \
    INLINE wide left_##size(wide v, unsigned by) {                                                 \
        return vreinterpretq_u8_u##bits(vshlq_u##bits(AS_##bits(v), vdupq_n_s##bits((int##bits##_t)by))); \
    }                                                                                              \
    INLINE wide right_##size(wide v, unsigned by) {                                                \
        return vreinterpretq_u8_u##bits(vshlq_u##bits(AS_##bits(v), vdupq_n_s##bits((int##bits##_t)-(int)by))); \
    }                                                                                              \
    INLINE wide at_most_##size(wide a, wide b) {                                                   \
        return vreinterpretq_u8_u##bits(vcleq_u##bits(AS_##bits(a), AS_##bits(b)));                \
    }
LANES(1, 8)
LANES(2, 16)
LANES(4, 32)
#undef LANES

INLINE void zip_1(wide v[2]) {
    uint8x16x2_t zipped = vzipq_u8(v[0], v[1]);
    v[0] = zipped.val[0];
    v[1] = zipped.val[1];
}
INLINE void zip_2(wide v[2]) {
    uint16x8x2_t zipped = vzipq_u16(AS_16(v[0]), AS_16(v[1]));
    v[0] = vreinterpretq_u8_u16(zipped.val[0]);
    v[1] = vreinterpretq_u8_u16(zipped.val[1]);
}
INLINE void unzip_1(wide v[2]) {
    uint8x16x2_t unzipped = vuzpq_u8(v[0], v[1]);
    v[0] = unzipped.val[0];
    v[1] = unzipped.val[1];
}
INLINE void unzip_2(wide v[2]) {
    uint16x8x2_t unzipped = vuzpq_u16(AS_16(v[0]), AS_16(v[1]));
    v[0] = vreinterpretq_u8_u16(unzipped.val[0]);
    v[1] = vreinterpretq_u8_u16(unzipped.val[1]);
}

INLINE wide ones_at(const uint8_t *row) {
    return vtstq_u8(vcombine_u8(vdup_n_u8(row[0]), vdup_n_u8(row[1])), vld1q_u8(bits_of_16));
}
INLINE uint32_t bits_at(wide v, unsigned q) {
    vector bits = vandq_u8(vtstq_u8(v, vdupq_n_u8((uint8_t)(1u << q))), vld1q_u8(bits_of_16));
    return vaddv_u8(vget_low_u8(bits)) | (uint32_t)vaddv_u8(vget_high_u8(bits)) << 8;
}

INLINE uint64_t any_bits(const uint8_t *p, unsigned size) {
    vector any = vdupq_n_u8(0);
    for (size_t i = 0; i < size; i += 16) any = vorrq_u8(any, vld1q_u8(p + i));
    return vgetq_lane_u64(AS_64(any), 0) | vgetq_lane_u64(AS_64(any), 1);
}

#define FEW 16
INLINE unsigned same(const uint8_t *bytes, unsigned count, uint8_t byte) {
    vector even = vdupq_n_u8(0), odd = even, sought = vdupq_n_u8(byte);
    for (unsigned i = 0; i < count; i += 32) {
        even = vsubq_u8(even, vceqq_u8(vld1q_u8(bytes + i), sought));
        odd = vsubq_u8(odd, vceqq_u8(vld1q_u8(bytes + i + 16), sought));
    }
    return (unsigned)vaddlvq_u8(even) + vaddlvq_u8(odd);
}

INLINE void move(const uint8_t *from, uint8_t *out, int stream) {
    for (unsigned i = 0; i < 64; i += 16) put(out + i, load(from + i), stream);
}

#include "target.h"
#endif
