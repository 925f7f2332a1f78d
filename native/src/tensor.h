/* What the public functions share: arguments that have been checked. */
#ifndef ENDOR_TENSOR_H
#define ENDOR_TENSOR_H

#include "kernels.h"

#define LINE 64u

/* A tensor whose counts and sizes make sense, and the kernels for it. */
typedef struct tensor {
    const kernels *kernels;
    unsigned shift; /* the logarithm of the size of an element */
    int bitmap, split;
    fields fields; /* of split elements */
    uint64_t numel, stored, patches, blocks;
    uint64_t row; /* bytes of a row of the index */
    size_t sizes[5];
} tensor;

/* The kernels of a target; NULL if it is not there. */
const kernels *endor_kernels(endor_target target);

/* The logarithm of the size of an element; -1 if there are none of this size. */
int endor_shift(size_t itemsize);

/* Whether there are floats of these widths to be split (spec 8.3). */
int endor_splits(const endor_encoding *encoding);

/* Checks a tensor; ENDOR_ARGUMENT, or ENDOR_TARGET. */
endor_status endor_open(endor_target target, const endor_tensor *given, tensor *t);

INLINE uint64_t roundup(uint64_t count, uint64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

INLINE uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Elements of a block, at most ENDOR_BLOCK. */
INLINE unsigned elements_of(const tensor *t, uint64_t block) {
    return (unsigned)smaller(t->numel - block * ENDOR_BLOCK, ENDOR_BLOCK);
}

/* Elements of the blocks before one. */
INLINE uint64_t elements_before(const tensor *t, uint64_t block) {
    return block < t->blocks ? block * ENDOR_BLOCK : t->numel;
}

#endif
