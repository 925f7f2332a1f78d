/* What a target is made of: kernels over one block, for each size of element.
 *
 * A kernel is an operation's template (expand.h, compress.h, scan.h) over what the target does with a word: 64 elements
 * and their 64 bits. target.h puts them together; scalar.c, avx2.c, avx512.c and neon.c say what the words are.
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

/* Copies the bitmap of a block and counts its 1 bits. (In one pass without calls: a copy by means of the library's
 * string functions, between stores that pass the caches, costs a quarter of the speed.) */
typedef unsigned take_block(const uint8_t *bitmap, uint64_t bits[BLOCK_WORDS]);

/* The number of 1 bits of so many words. */
typedef unsigned ones_block(const uint64_t *bits, unsigned words);

/* Expands `count` elements to `out`. Nothing is read at or after `end`, the end of the values buffer. `stream`: stores
 * may pass the caches, and `out` is aligned to ENDOR_STREAM_ALIGNMENT. */
typedef void expand_block(
    const uint64_t bits[BLOCK_WORDS], unsigned count, const uint8_t *values, const uint8_t *end,
    uint8_t *out, int stream);

/* Writes the bitmap of `count` elements, all words up to the last one that has an element, and their stored elements
 * to `values`. Nothing is written at or after `end`. Returns the number of stored elements; if they do not fit before
 * `end`, some number that says so, and what was written means nothing. */
typedef unsigned compress_block(
    const uint8_t *dense, unsigned count, uint64_t bits[BLOCK_WORDS], uint8_t *values,
    const uint8_t *end);

/* Counts the elements that are not zero. */
typedef unsigned count_block(const uint8_t *dense, unsigned count);

/* Whether one of `count` elements is zero. */
typedef int any_zero_block(const uint8_t *values, unsigned count);

typedef struct kernels {
    take_block *take;
    ones_block *ones;
    expand_block *expand[4]; /* by the logarithm of the size of an element */
    compress_block *compress[4];
    count_block *count[4];
    any_zero_block *any_zero[4];
    void (*fence)(void); /* stores that passed the caches become visible before those that follow */
} kernels;

extern const kernels endor_scalar;
#ifdef ENDOR_X86
extern const kernels endor_avx2;
extern const kernels endor_avx512;
#endif
#ifdef ENDOR_ARM
extern const kernels endor_neon;
#endif

#define INLINE static inline __attribute__((always_inline))

#endif
