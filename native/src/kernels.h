/* What a target is made of: kernels over one block, for each size of element.
 *
 * Kernels are given a copy of the block's bitmap, so that what was counted is what is expanded, and trust it: the
 * caller has checked that `values` has as many elements as there are bits. Bits from `count` on are 0.
 */
#ifndef ENDOR_KERNELS_H
#define ENDOR_KERNELS_H

#include <stdint.h>
#include <string.h>

#include "endor.h"

#define BLOCK_WORDS (ENDOR_BLOCK / 64)

/* Expands `count` elements to `out`. Nothing is read at or after `end`, the end of the values buffer. Returns whether a
 * stored element is zero. `stream`: `out` is aligned to 64 bytes and stores may pass the caches. */
typedef int expand_block(
    const uint64_t bits[BLOCK_WORDS], unsigned count, const uint8_t *values, const uint8_t *end,
    uint8_t *out, int stream);

/* Writes the bitmap of `count` elements, all words up to the last one that has an element, and their stored elements
 * to `values`. Nothing is written at or after `end`. Returns the number of stored elements; if they do not fit before
 * `end`, some number that says so, and what was written means nothing. */
typedef unsigned compress_block(
    const uint8_t *dense, unsigned count, uint64_t bits[BLOCK_WORDS], uint8_t *values,
    const uint8_t *end);

/* Counts the elements of a block that are not zero. */
typedef unsigned count_block(const uint8_t *dense, unsigned count);

/* The number of 1 bits. */
typedef unsigned ones_block(const uint64_t bits[BLOCK_WORDS]);

typedef struct kernels {
    ones_block *ones;
    expand_block *expand[4]; /* by the logarithm of the size of an element */
    compress_block *compress[4];
    count_block *count[4];
} kernels;

extern const kernels endor_scalar;
#ifdef ENDOR_X86
extern const kernels endor_avx2;
extern const kernels endor_avx512;
#endif

static inline int64_t entry_at(const void *index, uint64_t entry) {
    int64_t value;
    memcpy(&value, (const uint8_t *)index + 8 * entry, sizeof value);
    return value;
}

#endif
