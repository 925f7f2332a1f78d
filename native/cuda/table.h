/* What the host hands to the kernels: jobs whose sizes it has checked, as an argument of the launch. An argument needs no
 * memory of the device, and is kept in graphs as it was. */
#ifndef ENDOR_CUDA_TABLE_H
#define ENDOR_CUDA_TABLE_H

#include "endor_cuda.h"

/* Threads of a CTA, which decodes one block: one for each 32-bit word of the block's bitmap. */
#define ENDOR_CUDA_THREADS 128u

/* A job. It is the work of 1 + blocks CTAs: one looks at what lies before the first and behind the last block. */
typedef struct endor_cuda_entry {
    const uint8_t *values, *bitmap, *index, *bases, *patches;
    uint8_t *out;
    uint64_t *status;
    uint64_t numel, stored, patch_count;
    uint64_t values_size;
    uint64_t first;  /* block */
    uint32_t blocks; /* of them */
    uint32_t cta;    /* the first of the launch that is at work on this job */
    uint16_t group;  /* bytes of a group of split values, 0 for raw ones */
    uint8_t has_bitmap, exponent, mantissa, kept, width;
} endor_cuda_entry;

typedef struct endor_cuda_table {
    uint32_t count;
    endor_cuda_entry entries[ENDOR_CUDA_JOBS];
} endor_cuda_table;

/* Shared memory of a CTA: a head; the bytes of a block's values as they are in the part, moved by up to 15 bytes; and split
 * elements, joined, of the groups that the block has a share of. */
#define ENDOR_CUDA_HEAD 64u
#define ENDOR_CUDA_GROUPS 65u /* the most that 4096 stored elements can lie in */
#define ENDOR_CUDA_STAGE(size, group) (((group) != 0 ? ENDOR_CUDA_GROUPS * (group) : ENDOR_BLOCK * (size)) / 16 * 16 + 32)
#define ENDOR_CUDA_JOINED(size, group) ((group) != 0 ? ENDOR_CUDA_GROUPS * 64u * (size) : 0u)
#define ENDOR_CUDA_SHARED(size, group)                                                             \
    (ENDOR_CUDA_HEAD + ENDOR_CUDA_STAGE(size, group) + ENDOR_CUDA_JOINED(size, group))

#endif
