/* The Endor codec in C: parts to dense elements and back (spec 8, rules B and E).
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

/* How a call ended. Rules are those of spec/endor-1.md. Where a fault is told with an offset, it counts from the beginning of
 * the part that is named here; in split values it is that of a group. */
typedef enum endor_status {
    ENDOR_OK = 0,
    ENDOR_ARGUMENT = 1, /* a size, an item size, a range or a target that makes no sense: the caller's fault */
    ENDOR_TARGET = 2,   /* this machine or this build does not have the target */
    ENDOR_DRIVER = 3,   /* the CUDA driver refuses (endor_cuda.h) */
    ENDOR_B3 = 103,     /* bitmap: it has a bit set past the last element */
    ENDOR_B4 = 104,     /* index: a row does not begin with 0 */
    ENDOR_B5 = 105,     /* index: a row falls, or leaves 0 .. its last entry */
    ENDOR_B6 = 106,     /* index: a block has not as many bits as the entry after it says */
    ENDOR_B7 = 107,     /* index: a row does not end with its count */
    ENDOR_B8 = 108,     /* index: its padding is not 0 */
    ENDOR_B9 = 109,     /* values: their padding is not 0 */
    ENDOR_B10 = 110,    /* values: a stored element is zero */
    ENDOR_E2 = 202,     /* values: they have a bit set past the last stored element */
    ENDOR_E3 = 203,     /* bases: one is too high, or not 0 in a block without stored elements */
    ENDOR_E4 = 204,     /* bases: their padding is not 0 */
    ENDOR_E5 = 205,     /* patches: ranks do not ascend, or leave their block */
    ENDOR_E6 = 206,     /* patches: an exponent is too high, or inside the window */
    ENDOR_E7 = 207,     /* values: an element with a patch has a code that is not 0 */
    ENDOR_E8 = 208      /* patches: their padding is not 0 */
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

/* Where the stored elements are. */
enum { ENDOR_BITMAP = 0, ENDOR_ALL = 1 };

/* What they are. */
enum { ENDOR_RAW = 0, ENDOR_SPLIT = 1 };

/* How the elements of a tensor are stored: a pair of those; and for split values, the widths in bits of the fields of an
 * element and of what is kept of it (spec 8.3). These are not looked at for raw values. */
typedef struct endor_encoding {
    uint32_t itemsize;  /* bytes of an element */
    uint32_t positions; /* ENDOR_BITMAP or ENDOR_ALL */
    uint32_t values;    /* ENDOR_RAW or ENDOR_SPLIT */
    uint32_t exponent;  /* E */
    uint32_t mantissa;  /* M; 1 + E + M is 8 * itemsize */
    uint32_t kept;      /* m, the mantissa bits that are kept */
    uint32_t width;     /* w, the bits of a code */
} endor_encoding;

/* A tensor: its encoding and its counts, which say how large every part is. */
typedef struct endor_tensor {
    endor_encoding encoding;
    uint64_t numel;
    uint64_t stored;  /* n: nnz, or numel with ENDOR_ALL */
    uint64_t patches; /* 0 for raw values */
} endor_tensor;

/* The parts of a tensor in the order of B-2, of exactly the sizes that its counts imply. A part that its encoding does not
 * have is of size 0. */
typedef struct endor_parts {
    const void *values;
    size_t values_size;
    const void *bitmap;
    size_t bitmap_size;
    const void *index;
    size_t index_size;
    const void *bases;
    size_t bases_size;
    const void *patches;
    size_t patches_size;
} endor_parts;

/* The same, to be filled. */
typedef struct endor_room {
    void *values;
    size_t values_size;
    void *bitmap;
    size_t bitmap_size;
    void *index;
    size_t index_size;
    void *bases;
    size_t bases_size;
    void *patches;
    size_t patches_size;
} endor_room;

/* What there is to know of dense elements before they are encoded. */
typedef struct endor_survey_result {
    uint64_t nnz;
    uint32_t kept;          /* the least m that drops only zeros */
    uint64_t patches[2][4]; /* by positions, and by width - 1; as many as the canonical bases need (W-9) */
} endor_survey_result;

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

/* Counts them and all that decides how floats are split; for what cannot be split there is endor_count. Of `encoding` itemsize,
 * exponent and mantissa are looked at. Results of pieces add up, if all but the last are whole blocks; of `kept` the largest is
 * that of all. Widths that there are not for these floats need 0 patches here, and mean nothing. */
ENDOR_API endor_status endor_survey(
    endor_target target, const endor_encoding *encoding, const void *dense, size_t size, endor_survey_result *result);

/* The size of every part of a tensor, in the order of endor_parts; 0 for those that it does not have. ENDOR_ARGUMENT for an
 * encoding that is none, widths out of range, or counts that are too large for this machine. */
ENDOR_API endor_status endor_sizes(const endor_tensor *tensor, size_t sizes[5]);

/* A range of blocks to encode: first .. stop - 1; and where in the whole tensor what they hold begins and ends: the ranks
 * `low` and `high` of their stored elements, `patch_low` and `patch_high` of their patches. With ENDOR_ALL, ranks are the numbers
 * of elements: ENDOR_BLOCK * first, and for the last block numel. */
typedef struct endor_range {
    uint64_t first, stop, low, high, patch_low, patch_high;
} endor_range;

/* Fills what a range of blocks of `dense` has in the parts, canonically: their bitmap, values, bases and patches, and the index
 * entries that follow each; with the first block also the entries 0, with the last all padding. ENDOR_ARGUMENT if the sizes are
 * not those of endor_sizes for the whole tensor, or if `dense` is not what was counted: the range does not begin or end where it
 * says, or `kept` drops a bit. Threads can encode ranges of their own. Of split tensors the part `values` has to be zero before; and since a group of 64 stored elements may
 * begin in one range and end in the next, two ranges are not to be encoded at the same time if they have a group in common. */
ENDOR_API endor_status endor_encode(
    endor_target target, const endor_tensor *tensor, const void *dense, size_t size, const endor_range *range,
    const endor_room *parts);

/* Checks the blocks first .. stop - 1 of a tensor (B-11) and writes their elements to `out`. For all blocks this checks
 * all of B-3 to B-10 and E-2 to E-8. Of each row of the index, entries 0, first .. stop and the last are read, and of the other
 * parts what these blocks have, whole groups of values; with the last block all padding. After an error `out` holds nothing of use, and *offset is where in its part the fault
 * lies. */
ENDOR_API endor_status endor_decode(
    endor_target target, const endor_tensor *tensor, const endor_parts *parts, uint64_t first, uint64_t stop, void *out,
    size_t out_size, int flags, uint64_t *offset);

/* The same checks without an output: in less time. */
ENDOR_API endor_status endor_validate(
    endor_target target, const endor_tensor *tensor, const endor_parts *parts, uint64_t first, uint64_t stop,
    uint64_t *offset);

/* A slice: `rows` runs of `count` elements, of which run r begins at element start + r * stride. For columns 10 .. 19 of a
 * 100 x 50 matrix: start 10, count 10, stride 50, rows 100. */
typedef struct endor_runs {
    uint64_t start, count, stride, rows;
} endor_runs;

/* Decodes a slice, one run behind the other to `out`. Of the blocks that it touches the index and the bitmap are read and
 * checked, and the values of the words that it touches (B-11). What is handed out is what was checked also in a memory map that
 * somebody writes to. */
ENDOR_API endor_status endor_slice(
    endor_target target, const endor_tensor *tensor, const endor_parts *parts, const endor_runs *runs, void *out,
    size_t out_size, uint64_t *offset);

#ifdef __cplusplus
}
#endif
#endif
