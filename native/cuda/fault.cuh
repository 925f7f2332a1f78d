/* Status words: of all faults that CTAs find at the same time the one remains that a sequential reader would have met first. */
#ifndef ENDOR_CUDA_FAULT_CUH
#define ENDOR_CUDA_FAULT_CUH

#include "table.h"

/* Order within the checks of the ends, of a block, and of the padding (the reference's, native/src/block.c). Where there are two rows of the
 * index, the second comes right after the first. */
enum { EDGE_BITMAP, EDGE_BEGIN, EDGE_PADDING = EDGE_BEGIN + 2, EDGE_LAST = EDGE_PADDING + 2, EDGE_PLACE = EDGE_LAST + 2 };
enum { BLOCK_RANKS, BLOCK_ONES, BLOCK_PATCHES, BLOCK_BASE, BLOCK_PATCH, BLOCK_ZERO = BLOCK_PATCH + ENDOR_BLOCK + 1 };
enum { AFTER_VALUES, AFTER_BASES, AFTER_PATCHES };

/* Places: 0 is before all blocks, then block b is b + 1. The largest word wins, and 0 is no fault, so what comes first is the
 * largest number: the complement of place (43 bits), order (13 bits) and status (8 bits). host.c takes it apart. */
#define PLACE_SHIFT 21
#define ORDER_SHIFT 8

static __device__ __forceinline__ void tell(const endor_cuda_entry &job, uint64_t place, unsigned order, unsigned status) {
    if (job.status == nullptr) return;
    uint64_t word = ~(place << PLACE_SHIFT | (uint64_t)order << ORDER_SHIFT | status);
    atomicMax(reinterpret_cast<unsigned long long *>(job.status), static_cast<unsigned long long>(word));
}

#endif
