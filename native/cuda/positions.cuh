/* Positions: the bitmap of a block, one word for each thread, and elements from their ranks to their places. */
#ifndef ENDOR_CUDA_POSITIONS_CUH
#define ENDOR_CUDA_POSITIONS_CUH

#include "memory.cuh"

#define WARP 32u
#define WARPS (ENDOR_CUDA_THREADS / WARP)
#define ALL_LANES 0xFFFFFFFFu

/* A thread's word of the bitmap of a block of `count` elements, without the bits past them. */
static __device__ __forceinline__ uint32_t take_word(const uint8_t *bitmap, unsigned count) {
    unsigned first = threadIdx.x * 32;
    if (first >= count) return 0;
    uint32_t word = load<uint32_t>(bitmap + threadIdx.x * 4);
    return count - first < 32 ? word & ((1u << (count - first)) - 1) : word;
}

/* The sum of `ones` over the lanes of the warp up to this one. */
static __device__ __forceinline__ unsigned sum_up_to(unsigned ones) {
    unsigned lane = threadIdx.x % WARP;
#pragma unroll
    for (unsigned by = 1; by < WARP; by *= 2) {
        unsigned other = __shfl_up_sync(ALL_LANES, ones, by);
        if (lane >= by) ones += other;
    }
    return ones;
}

/* 16 bytes of elements from those that are stored: of rank `rank` on, where `bits` has a 1; else zeros. */
template <unsigned SIZE>
static __device__ __forceinline__ void gather(const uint8_t *elements, unsigned rank, uint32_t bits, uint32_t (&words)[4]) {
    const uint8_t *from = elements + rank * SIZE;
    words[0] = words[1] = words[2] = words[3] = 0;
#pragma unroll
    for (unsigned i = 0; i < 16 / SIZE; i++) {
        if ((bits >> i & 1) == 0) continue;
        if constexpr (SIZE == 1) words[i / 4] |= static_cast<uint32_t>(*from) << i % 4 * 8;
        if constexpr (SIZE == 2)
            words[i / 2] |= static_cast<uint32_t>(*reinterpret_cast<const uint16_t *>(from)) << i % 2 * 16;
        if constexpr (SIZE == 4) words[i] = *reinterpret_cast<const uint32_t *>(from);
        if constexpr (SIZE == 8) {
            uint2 element = *reinterpret_cast<const uint2 *>(from);
            words[2 * i] = element.x;
            words[2 * i + 1] = element.y;
        }
        from += SIZE;
    }
}

/* The `count` elements of a block to `out`, from those that are stored, in shared memory. `before` is the rank of a thread's
 * word. A warp writes its 1024 elements in rows of 512 bytes, for which lanes need the words of others. */
template <unsigned SIZE>
static __device__ void expand(uint32_t word, unsigned before, const uint8_t *elements, uint8_t *out, unsigned count) {
    const unsigned EACH = 16 / SIZE;
    unsigned lane = threadIdx.x % WARP, base = threadIdx.x / WARP * 1024;
#pragma unroll 4
    for (unsigned k = 0; k < 2 * SIZE; k++) {
        unsigned place = (k * WARP + lane) * EACH;
        uint32_t whole = __shfl_sync(ALL_LANES, word, place / 32);
        unsigned rank = __shfl_sync(ALL_LANES, before, place / 32);
        rank += __popc(whole & ((1u << place % 32) - 1));
        uint32_t words[4];
        gather<SIZE>(elements, rank, whole >> place % 32, words);
        if (base + place < count)
            put(out + (base + place) * SIZE, words, (count - base - place) * SIZE);
    }
}

/* The same where all elements are stored; they begin at a multiple of 16. */
template <unsigned SIZE>
static __device__ void copy(const uint8_t *elements, uint8_t *out, unsigned count) {
    for (unsigned at = threadIdx.x * 16; at < count * SIZE; at += ENDOR_CUDA_THREADS * 16) {
        uint4 four = *reinterpret_cast<const uint4 *>(elements + at);
        const uint32_t words[4] = {four.x, four.y, four.z, four.w};
        put(out + at, words, count * SIZE - at);
    }
}

#endif
