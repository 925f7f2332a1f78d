/* What a target is made of: kernels over one block, for each size of element.
 *
 * A kernel is an operation's template (expand.h, compress.h, scan.h, split.h) over what the target does with a word: 64
 * elements and their 64 bits, or a group. target.h puts them together; scalar.c, avx2.c, avx512.c and neon.c say what the
 * words are.
 *
 * Kernels are given a copy of the block's bitmap, so that what was counted is what is expanded, and trust it: the
 * caller has checked that `values` has as many elements as there are bits. Bits from `count` on are 0.
 */
#ifndef ENDOR_KERNELS_H
#define ENDOR_KERNELS_H

#include <stdint.h>
#include <string.h>

#include "endor.h"

#define INLINE static inline __attribute__((always_inline))

/* Lets the compiler forget where a number comes from, which it may not read again: somebody may have written there. */
#define ONCE(number) __asm__("" : "+r"(number))

#define BLOCK_WORDS (ENDOR_BLOCK / 64)

/* Elements of a group. */
#define GROUP 64u

/* Elements as numbers, by their size. */
typedef uint8_t element_1;
typedef uint16_t element_2;
typedef uint32_t element_4;
typedef uint64_t element_8;

/* The most exponents that there are. */
#define EXPONENTS 256u

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

/* The fields of split elements, and what a group consists of (spec 8.3). An element's *symbol* is what a group holds of it,
 * residue + code * 2^s: its bytes are first those of the group's byte rows, and then 8 bit rows make one. */
typedef struct fields {
    unsigned exponent, mantissa, kept, width; /* E, M, m, w */
    unsigned residue;                         /* s = 1 + m */
    unsigned bytes, bits;                     /* rows of 64 bytes, P, and of 64 bits, R + w */
    unsigned group;                           /* bytes of a group */
} fields;

INLINE fields fields_of(unsigned exponent, unsigned mantissa, unsigned kept, unsigned width) {
    unsigned residue = 1 + kept;
    return (fields){
        .exponent = exponent,
        .mantissa = mantissa,
        .kept = kept,
        .width = width,
        .residue = residue,
        .bytes = residue / 8,
        .bits = residue % 8 + width,
        .group = 8 * (residue + width),
    };
}

/* Groups to elements, with the code 0 standing for the exponent `base`. */
typedef void join_block(const fields *fields, const uint8_t *groups, unsigned count, unsigned base, uint8_t *elements);

/* Symbols to groups. */
typedef void split_block(const fields *fields, const uint8_t *symbols, unsigned count, uint8_t *groups);

/* The symbols of `count` elements and the patches of those outside the window of `base`; returns how many. Reads and writes
 * whole words of elements and symbols. */
typedef unsigned code_block(
    const fields *fields, unsigned base, const uint8_t *elements, unsigned count, uint8_t *symbols, uint8_t *patches);

/* Counts exponents, and returns all bits that one of the elements has. Behind them are 0s up to a whole word. */
typedef uint32_t tally_block(const fields *fields, const uint8_t *elements, unsigned count, uint16_t counts[EXPONENTS]);

/* Patches of a block with `stored` elements, of which those of rank from .. to - 1 are at `elements`. */
typedef struct patching {
    const uint8_t *patches;
    uint64_t count;
    unsigned base, stored, from, to;
    uint8_t *elements;
    uint64_t patch; /* where it ended: which patch, for the element of which rank */
    unsigned rank;
    int zeros; /* whether an exponent was 0 */
} patching;

/* Checks them (E-5, E-6; for the elements that are there E-7) and gives those elements their exponents. */
typedef endor_status patch_block(const fields *fields, patching *p);

/* Sums of windows, by their bases; there are 0s behind the last one. */
#define WINDOWS (EXPONENTS + 8)

/* From the sums of windows of 2^(width - 1) exponents, those of windows of 2^width; returns the largest. Windows may stick out
 * behind the last exponent: they hold no more than one that does not, which has a smaller base. */
typedef unsigned widen_windows(uint16_t sums[WINDOWS], unsigned width);

/* Copies bytes; `stream` as in expand. */
typedef void copy_bytes(const uint8_t *from, size_t size, uint8_t *out, int stream);

typedef struct kernels {
    take_block *take;
    ones_block *ones;
    expand_block *expand[4]; /* by the logarithm of the size of an element */
    compress_block *compress[4];
    count_block *count[4];
    any_zero_block *any_zero[4];
    join_block *join[3];
    split_block *split[3];
    code_block *code[3];
    tally_block *tally[3];
    patch_block *patch[3];
    widen_windows *widen;
    copy_bytes *copy;
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

#endif
