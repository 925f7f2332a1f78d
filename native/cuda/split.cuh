/* Split values (spec 8.3): groups, in shared memory, to elements; and their patches. */
#ifndef ENDOR_CUDA_SPLIT_CUH
#define ENDOR_CUDA_SPLIT_CUH

#include "fault.cuh"
#include "memory.cuh"

/* The lowest 4 bits, each in a byte of its own. */
static __device__ __forceinline__ uint32_t spread(uint32_t bits) {
    return (bits & 15) * 0x00204081u & 0x01010101u;
}

/* Bytes of four elements, byte k of all of them in bytes[k], to elements one behind the other. */
template <unsigned SIZE>
static __device__ __forceinline__ void interleave(uint32_t (&bytes)[SIZE]) {
    if constexpr (SIZE >= 2) {
        uint32_t low = __byte_perm(bytes[0], bytes[1], 0x5140), high = __byte_perm(bytes[0], bytes[1], 0x7362);
        bytes[0] = low;
        bytes[1] = high;
    }
    if constexpr (SIZE == 4) {
        uint32_t low = __byte_perm(bytes[2], bytes[3], 0x5140), high = __byte_perm(bytes[2], bytes[3], 0x7362);
        uint32_t first = bytes[0], second = bytes[1];
        bytes[0] = __byte_perm(first, low, 0x5410);
        bytes[1] = __byte_perm(first, low, 0x7632);
        bytes[2] = __byte_perm(second, high, 0x5410);
        bytes[3] = __byte_perm(second, high, 0x7632);
    }
}

/* Joins whole groups: four neighbours are the work of a thread, 16 threads do a group. An element's symbol, what a group
 * holds of it, is its residue and above that its code; as many as go into 32 bits are made elements at the same time: in none
 * of the sums and shifts does a bit leave its element, as base + code is an exponent (E-3). */
template <unsigned SIZE>
static __device__ void join(const endor_cuda_entry &job, const uint8_t *groups, unsigned count, unsigned base, uint8_t *elements) {
    const uint32_t each = SIZE == 1 ? 0x01010101u : SIZE == 2 ? 0x00010001u : 1u;
    unsigned residue = 1u + job.kept, rows = residue / 8, planes = residue % 8 + job.width;
    unsigned dropped = job.mantissa - job.kept, to_sign = 8 * SIZE - 1 - job.kept;
    uint32_t mantissas = ((1u << job.kept) - 1) * each, signs = (1u << job.kept) * each;
    uint32_t codes = ((1u << job.width) - 1) * each, bottom = (static_cast<uint32_t>(base) << job.mantissa) * each;
    for (unsigned item = threadIdx.x; item < count * 16; item += ENDOR_CUDA_THREADS) {
        unsigned four = item % 16 * 4;
        const uint8_t *group = groups + item / 16 * job.group;
        uint32_t words[SIZE], low = 0, high = 0;
        const uint32_t *plane = reinterpret_cast<const uint32_t *>(group + 64 * rows) + four / 32;
        for (unsigned q = 0; q < planes; q++, plane += 2) {
            uint32_t bits = spread(*plane >> four % 32);
            if (q < 8)
                low |= bits << q;
            else
                high |= bits << (q - 8);
        }
#pragma unroll
        for (unsigned k = 0; k < SIZE; k++) {
            words[k] = k == rows ? low : k == rows + 1 ? high : 0;
            if (k < rows) words[k] = *reinterpret_cast<const uint32_t *>(group + 64 * k + four);
        }
        interleave<SIZE>(words);
#pragma unroll
        for (unsigned k = 0; k < SIZE; k++) {
            uint32_t symbols = words[k];
            words[k] = (((symbols >> residue & codes) << job.mantissa) + bottom) | (symbols & mantissas) << dropped |
                       (symbols & signs) << to_sign;
        }
        uint32_t *to = reinterpret_cast<uint32_t *>(elements + item * 4 * SIZE);
        if constexpr (SIZE == 1) *to = words[0];
        if constexpr (SIZE == 2) *reinterpret_cast<uint2 *>(to) = make_uint2(words[0], words[1]);
        if constexpr (SIZE == 4) *reinterpret_cast<uint4 *>(to) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

/* An element as a number. */
template <unsigned SIZE>
static __device__ __forceinline__ uint64_t element(const uint8_t *elements, unsigned rank) {
    if constexpr (SIZE == 1) return elements[rank];
    if constexpr (SIZE == 2) return reinterpret_cast<const uint16_t *>(elements)[rank];
    if constexpr (SIZE == 4) return reinterpret_cast<const uint32_t *>(elements)[rank];
    if constexpr (SIZE == 8) return reinterpret_cast<const uint64_t *>(elements)[rank];
}

struct patch {
    unsigned rank, exponent;
};

static __device__ __forceinline__ patch take_patch(const uint8_t *patches, uint64_t at) {
    const uint8_t *from = patches + 3 * at;
    return {from[0] | static_cast<unsigned>(from[1]) << 8, from[2]};
}

/* The first rule that a patch breaks; 0 for none. The elements have none of their patches yet. */
template <unsigned SIZE>
static __device__ __forceinline__ unsigned fault_of(
    const endor_cuda_entry &job, patch one, unsigned least, unsigned stored, unsigned base, const uint8_t *elements) {
    if (one.rank < least || one.rank >= stored) return ENDOR_E5;
    if (one.exponent >> job.exponent != 0 || one.exponent - base < 1u << job.width) return ENDOR_E6;
    unsigned exponent = static_cast<unsigned>(element<SIZE>(elements, one.rank) >> job.mantissa) & ((1u << job.exponent) - 1);
    return exponent != base ? ENDOR_E7 : 0;
}

/* Checks the `count` patches of a block from number `first` on, of `stored` elements, and then, behind a barrier, applies them:
 * as all ranks differ, no two threads write to the same element. *zero: whether one may have made an element of zeros. False
 * for all threads of the CTA after a fault. */
template <unsigned SIZE>
static __device__ bool apply_patches(
    const endor_cuda_entry &job, uint64_t block, uint64_t first, unsigned count, unsigned stored, unsigned base,
    uint8_t *elements, bool *zero) {
    int broken = 0;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < count && !broken; i += ENDOR_CUDA_THREADS) {
        unsigned least = i == 0 ? 0 : take_patch(job.patches, first + i - 1).rank + 1;
        unsigned rule = fault_of<SIZE>(job, take_patch(job.patches, first + i), least, stored, base, elements);
        if (rule == 0) continue;
        tell(job, block + 1, BLOCK_PATCH + i, rule);
        broken = 1;
    }
    if (__syncthreads_or(broken)) return false;
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < count; i += ENDOR_CUDA_THREADS) {
        patch one = take_patch(job.patches, first + i);
        /* Looked at again: what was read before may have changed, and what is written to must lie in the block. */
        if (one.rank >= stored) continue;
        uint32_t change = (base ^ one.exponent) << job.mantissa;
        *zero |= one.exponent == 0;
        if constexpr (SIZE == 1) elements[one.rank] ^= static_cast<uint8_t>(change);
        if constexpr (SIZE == 2) reinterpret_cast<uint16_t *>(elements)[one.rank] ^= static_cast<uint16_t>(change);
        if constexpr (SIZE == 4) reinterpret_cast<uint32_t *>(elements)[one.rank] ^= change;
    }
    return true;
}

#endif
