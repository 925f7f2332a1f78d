/* The Endor codec in C: bitmap and values to dense elements and back (spec 8, rules B).
 *
 * Every function is re-entrant, allocates nothing, does no I/O and never reads or writes outside the buffers that
 * it is given, whatever is in them: a file may be hostile. Buffers need no alignment. Parts may even change while
 * they are decoded (a memory map): what is decoded is then undefined, but nothing is read or written out of bounds.
 *
 * All sizes are in bytes unless they are called a count. Elements are 1, 2, 4 or 8 bytes, little-endian as in the
 * file; the library is for little-endian machines.
 */
#ifndef ENDOR_H
#define ENDOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define ENDOR_API
#else
#define ENDOR_API __attribute__((visibility("default")))
#endif

/* Elements in a block, the unit of the index. */
#define ENDOR_BLOCK 4096u

/* How a call ended. Rules are those of spec/endor-1.md. */
typedef enum endor_status {
    ENDOR_OK = 0,
    ENDOR_ARGUMENT = 1, /* a size, an item size, a range or a target that makes no sense: the caller's fault */
    ENDOR_TARGET = 2,   /* this machine or this build does not have the target */
    ENDOR_B3 = 103,     /* the bitmap has a bit set past the last element */
    ENDOR_B4 = 104,     /* the index does not begin with 0 */
    ENDOR_B5 = 105,     /* the index falls, or leaves 0 .. nnz */
    ENDOR_B6 = 106,     /* a block has not the number of bits that the index says */
    ENDOR_B7 = 107,     /* the index does not end with nnz */
    ENDOR_B8 = 108,     /* the padding of the index is not 0 */
    ENDOR_B9 = 109,     /* the padding of the values is not 0 */
    ENDOR_B10 = 110     /* a stored element is zero */
} endor_status;

/* An instruction set. Each can be forced, so that all of them can be tested on one machine. */
typedef enum endor_target {
    ENDOR_AUTO = 0, /* the best that this machine has */
    ENDOR_SCALAR = 1,
    ENDOR_AVX2 = 2,
    ENDOR_AVX512 = 3, /* F, BW, VL, VBMI2 */
    ENDOR_NEON = 4,   /* 64-bit ARM */
    ENDOR_TARGETS = 5
} endor_target;

/* The parts of a tensor, in the order of B-2. */
typedef struct endor_parts {
    const void *values;
    size_t values_size; /* roundup(nnz * itemsize, 64) */
    const void *bitmap;
    size_t bitmap_size; /* roundup(ceil(numel / 8), 64) */
    const void *index;
    size_t index_size; /* 8 * roundup(blocks + 1, 8) */
} endor_parts;

/* A flag of endor_decode: store past the caches, if `out` is aligned to ENDOR_STREAM_ALIGNMENT and the target can. Faster
 * for an output that is larger than the caches and mapped already; slower for fresh memory. */
#define ENDOR_STREAM 1
#define ENDOR_STREAM_ALIGNMENT 16u

/* Number of blocks of a tensor: ceil(numel / ENDOR_BLOCK). */
ENDOR_API uint64_t endor_blocks(uint64_t numel);

/* Whether this machine and this build have a target; ENDOR_AUTO: always. */
ENDOR_API int endor_has(endor_target target);

/* The target that ENDOR_AUTO stands for. */
ENDOR_API endor_target endor_best(void);

/* Counts the elements of `dense` that are not all zero bits: *nnz. `size` is a multiple of `itemsize`. */
ENDOR_API endor_status endor_count(
    endor_target target, const void *dense, size_t size, size_t itemsize, uint64_t *nnz);

/* Fills what the blocks first .. stop - 1 of `dense` have in the parts: their bitmap, their values, and the index entry
 * that follows each; with the first block also entry 0, with the last all padding. `low` and `high` are the ranks at
 * which their values begin and end, as endor_count counts them; 0 and nnz for all blocks. The sizes are those of
 * endor_parts for the whole tensor. ENDOR_ARGUMENT if one of all this is not so. Threads can encode ranges of their own. */
ENDOR_API endor_status endor_encode(
    endor_target target, const void *dense, size_t size, size_t itemsize, uint64_t first,
    uint64_t stop, uint64_t low, uint64_t high, void *values, size_t values_size, void *bitmap,
    size_t bitmap_size, void *index, size_t index_size);

/* Checks the blocks first .. stop - 1 of a tensor (B-11) and writes their elements to `out`. For all blocks this checks
 * all of B-3 to B-10. After an error `out` holds nothing of use, and *offset is where in its part the fault lies. */
ENDOR_API endor_status endor_decode(
    endor_target target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t first, uint64_t stop, void *out, size_t out_size, int flags, uint64_t *offset);

/* The same checks without an output: in about half the time. */
ENDOR_API endor_status endor_validate(
    endor_target target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t first, uint64_t stop, uint64_t *offset);

/* Decodes a slice: `rows` runs of `count` elements, of which run r begins at element start + r * stride, one run behind the
 * other to `out`. For columns 10 .. 19 of a 100 x 50 matrix: start 10, count 10, stride 50, rows 100. Of the blocks that
 * the slice touches the index and the bitmap are read and checked, and the values of the words that it touches (B-11). What
 * is handed out is what was checked also in a memory map that somebody writes to. */
ENDOR_API endor_status endor_slice(
    endor_target target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t start, uint64_t count, uint64_t stride, uint64_t rows, void *out, size_t out_size, uint64_t *offset);

#ifdef __cplusplus
}
#endif
#endif
