/* Bytes of parts into registers and shared memory, and elements out, of any alignment and never beyond the ends. */
#ifndef ENDOR_CUDA_MEMORY_CUH
#define ENDOR_CUDA_MEMORY_CUH

#include "table.h"

static __device__ __forceinline__ bool aligned(const void *pointer, unsigned to) {
    return reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

/* A number in a part, at once or byte by byte. */
template <typename Number>
static __device__ __forceinline__ Number load(const uint8_t *from) {
    if (aligned(from, sizeof(Number))) return *reinterpret_cast<const Number *>(from);
    Number number = 0;
#pragma unroll 1
    for (unsigned i = 0; i < sizeof(Number); i++) number |= static_cast<Number>(from[i]) << 8 * i;
    return number;
}

/* Whether 4 bytes have, for elements of up to 4 bytes, one that is zero. (A borrow makes the answer wrong for one element
 * only above another that is zero.) */
template <unsigned SIZE>
static __device__ __forceinline__ bool zero_in(uint32_t word) {
    if constexpr (SIZE >= 4) {
        return word == 0;
    } else {
        const uint32_t ones = SIZE == 1 ? 0x01010101u : 0x00010001u;
        return ((word - ones) & ~word & ones << (8 * SIZE - 1)) != 0;
    }
}

template <unsigned SIZE>
static __device__ __forceinline__ bool zero_in(const uint4 &words) {
    if (SIZE == 8) return (words.x | words.y) == 0 || (words.z | words.w) == 0;
    return zero_in<SIZE>(words.x) || zero_in<SIZE>(words.y) || zero_in<SIZE>(words.z) || zero_in<SIZE>(words.w);
}

/* Where in shared memory the first of the staged bytes is, and whether this thread has seen what may be an element of zeros. */
struct staged {
    unsigned skew;
    bool zero;
};

/* Copies `length` bytes from byte `from` of a part of `size` bytes on into shared memory, which must have room for 31 more.
 * Whole 16 bytes of memory are read, as long as they lie in the part: neighbours come along. What has not the alignment UNIT is
 * copied byte by byte. UNIT is also the size of the elements that are looked at for zeros; all bytes are, so that there may be
 * false alarms, in what came along. */
template <unsigned UNIT>
static __device__ staged stage(uint4 *room, const uint8_t *part, uint64_t size, uint64_t from, unsigned length) {
    const unsigned BATCH = 4; /* loads that are under way at the same time */
    uint8_t *bytes = reinterpret_cast<uint8_t *>(room);
    const uint8_t *begin = part + from;
    unsigned skew = static_cast<unsigned>(reinterpret_cast<uintptr_t>(begin) % 16);
    staged done = {skew, false};
    if (skew % UNIT != 0) {
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < length; i += ENDOR_CUDA_THREADS) bytes[i] = begin[i];
        done.skew = 0;
        done.zero = true;
        return done;
    }
    unsigned chunks = length > 0 ? (skew + length + 15) / 16 : 0;
#pragma unroll 1
    for (unsigned at = threadIdx.x; at < chunks; at += BATCH * ENDOR_CUDA_THREADS) {
        uint4 batch[BATCH];
#pragma unroll
        for (unsigned j = 0; j < BATCH; j++) {
            unsigned k = at + j * ENDOR_CUDA_THREADS;
            if (k >= chunks) continue;
            /* Offsets, not pointers: what lies before the part is no address to compute with. */
            uint64_t low = from + 16 * static_cast<uint64_t>(k);
            if (low >= skew && low - skew + 16 <= size) {
                batch[j] = *reinterpret_cast<const uint4 *>(part + (low - skew));
                done.zero |= zero_in<UNIT>(batch[j]);
            }
        }
#pragma unroll
        for (unsigned j = 0; j < BATCH; j++) {
            unsigned k = at + j * ENDOR_CUDA_THREADS;
            if (k >= chunks) continue;
            uint64_t low = from + 16 * static_cast<uint64_t>(k);
            if (low >= skew && low - skew + 16 <= size) {
                room[k] = batch[j];
                continue;
            }
            /* At an end of a part that does not begin at a multiple of 16. */
            done.zero = true;
#pragma unroll 1
            for (unsigned i = 16 * k < skew ? skew : 16 * k; i < 16 * k + 16 && i < skew + length; i++)
                bytes[i] = begin[i - skew];
        }
    }
    return done;
}

/* 16 bytes of elements to their place, of which there are `there`; each alone if they are fewer, or not aligned. */
static __device__ __forceinline__ void put(uint8_t *to, const uint32_t (&words)[4], unsigned there) {
    if (there >= 16 && aligned(to, 16)) {
        *reinterpret_cast<uint4 *>(to) = make_uint4(words[0], words[1], words[2], words[3]);
        return;
    }
    /* Seldom: in a small loop, whose registers are named. */
    uint32_t now = words[0], second = words[1], third = words[2], fourth = words[3];
#pragma unroll 1
    for (unsigned i = 0; i < 16 && i < there; i++) {
        to[i] = static_cast<uint8_t>(now);
        now >>= 8;
        if (i % 4 == 3) now = second, second = third, third = fourth;
    }
}

#endif
