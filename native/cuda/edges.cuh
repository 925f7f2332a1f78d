/* What lies before the first and behind the last block of a tensor: rules B-3, B-4, B-7 to B-9, E-2, E-4, E-8. */
#ifndef ENDOR_CUDA_EDGES_CUH
#define ENDOR_CUDA_EDGES_CUH

#include "fault.cuh"
#include "memory.cuh"

static __device__ __forceinline__ uint64_t roundup(uint64_t count, unsigned multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

/* Whether this thread sees a byte that is not 0 among those from `low` to `high` of a part. */
static __device__ bool dirty(const uint8_t *part, uint64_t low, uint64_t high) {
    bool found = false;
#pragma unroll 1
    for (uint64_t at = low + threadIdx.x; at < high; at += ENDOR_CUDA_THREADS) found |= part[at] != 0;
    return found;
}

/* The bits that byte `at` of the last, not full, group has of no element: `some` elements are there. */
static __device__ __forceinline__ unsigned none_of(unsigned at, unsigned rows, unsigned some) {
    if (at < 64 * rows) return at % 64 >= some ? 0xFF : 0;
    unsigned first = at % 8 * 8;
    return some <= first ? 0xFF : some >= first + 8 ? 0 : 0xFFu << (some - first) & 0xFF;
}

/* E-2. */
static __device__ bool dirty_groups(const endor_cuda_entry &job) {
    uint64_t last = job.stored / 64 * job.group;
    unsigned some = static_cast<unsigned>(job.stored % 64), rows = (1u + job.kept) / 8;
    bool found = false;
    if (some > 0) {
#pragma unroll 1
        for (unsigned at = threadIdx.x; at < job.group; at += ENDOR_CUDA_THREADS)
            found |= (job.values[last + at] & none_of(at, rows, some)) != 0;
        last += job.group;
    }
    return found | dirty(job.values, last, job.values_size);
}

/* A row of the index. `second` is added to the order of faults. */
static __device__ void check_row(
    const endor_cuda_entry &job, const uint8_t *row, uint64_t blocks, uint64_t last, unsigned second, bool to_end) {
    if (to_end && dirty(row, 8 * (blocks + 1), 8 * roundup(blocks + 1, 8))) tell(job, 0, EDGE_PADDING + second, ENDOR_B8);
    if (threadIdx.x != 0) return;
    if (load<uint64_t>(row) != 0) tell(job, 0, EDGE_BEGIN + second, ENDOR_B4);
    if (load<uint64_t>(row + 8 * blocks) != last) tell(job, 0, EDGE_LAST + second, ENDOR_B7);
    if (load<uint64_t>(row + 8 * job.first) > last) tell(job, 0, EDGE_PLACE + second, ENDOR_B5);
}

/* One CTA for each tensor. Of a range that does not reach the end only what its blocks rely on is checked (B-11). */
template <unsigned SIZE>
static __device__ void check_edges(const endor_cuda_entry &job) {
    uint64_t blocks = (job.numel + ENDOR_BLOCK - 1) / ENDOR_BLOCK, row = 8 * roundup(blocks + 1, 8);
    bool to_end = job.first + job.blocks == blocks;
    if (job.has_bitmap) {
        if (to_end) {
            uint64_t at = job.numel / 8, size = roundup((job.numel + 7) / 8, 64);
            bool found = at < size && job.bitmap[at] >> (job.numel % 8) != 0;
            if (found | dirty(job.bitmap, at + 1, size)) tell(job, 0, EDGE_BITMAP, ENDOR_B3);
        }
        check_row(job, job.index, blocks, job.stored, 0, to_end);
    }
    if (job.group != 0) check_row(job, job.index + (job.has_bitmap ? row : 0), blocks, job.patch_count, job.has_bitmap, to_end);
    if (!to_end) return;
    if (job.group == 0) {
        if (dirty(job.values, job.stored * SIZE, job.values_size)) tell(job, blocks + 1, AFTER_VALUES, ENDOR_B9);
        return;
    }
    if (dirty_groups(job)) tell(job, blocks + 1, AFTER_VALUES, ENDOR_E2);
    if (dirty(job.bases, blocks, roundup(blocks, 64))) tell(job, blocks + 1, AFTER_BASES, ENDOR_E4);
    if (dirty(job.patches, 3 * job.patch_count, 3 * roundup(job.patch_count, 64)))
        tell(job, blocks + 1, AFTER_PATCHES, ENDOR_E8);
}

#endif
