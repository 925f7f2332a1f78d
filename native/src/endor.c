/* The public functions: arguments checked, a target chosen, block after block given to its kernels. */
#include "endor.h"

#include "copy.h"
#include "cpu.h"
#include "kernels.h"

#define LINE 64u
/* A slice of so many bytes and more is stored past the caches. */
#define STREAM ((size_t)4 << 20)

static uint64_t roundup(uint64_t count, uint64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* The logarithm of the size of an element; -1 if there are none of this size. */
static int shift_of(size_t itemsize) {
    switch (itemsize) {
    case 1: return 0;
    case 2: return 1;
    case 4: return 2;
    case 8: return 3;
    default: return -1;
    }
}

uint64_t endor_blocks(uint64_t numel) {
    return numel / ENDOR_BLOCK + (numel % ENDOR_BLOCK != 0);
}

int endor_has(endor_target target) {
    return target == ENDOR_AUTO || endor_cpu_has(target);
}

endor_target endor_best(void) {
    return endor_cpu_best();
}

static const kernels *kernels_of(endor_target target) {
    if (target == ENDOR_AUTO) target = endor_cpu_best();
    if (!endor_cpu_has(target)) return NULL;
    switch (target) {
#ifdef ENDOR_X86
    case ENDOR_AVX512: return &endor_avx512;
    case ENDOR_AVX2: return &endor_avx2;
#endif
#ifdef ENDOR_ARM
    case ENDOR_NEON: return &endor_neon;
#endif
    default: return &endor_scalar;
    }
}

/* Sizes of parts, so that numel and nnz are too large for this machine rather than wrapped around. */
static int sizes_fit(
    uint64_t numel, uint64_t nnz, size_t itemsize, size_t values, size_t bitmap, size_t index) {
    if (numel > UINT64_MAX / 64 || nnz > numel) return 0;
    return values == roundup(nnz * itemsize, LINE) &&
           bitmap == roundup(numel / 8 + (numel % 8 != 0), LINE) &&
           index == 8 * roundup(endor_blocks(numel) + 1, 8);
}

static int range_fits(
    const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz, uint64_t first, uint64_t stop) {
    return sizes_fit(numel, nnz, itemsize, parts->values_size, parts->bitmap_size, parts->index_size) &&
           first <= stop && stop <= endor_blocks(numel);
}

endor_status endor_count(
    endor_target target, const void *dense, size_t size, size_t itemsize, uint64_t *nnz) {
    int shift = shift_of(itemsize);
    const kernels *kernels = kernels_of(target);
    if (shift < 0 || size % itemsize != 0) return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    uint64_t numel = size / itemsize, stored = 0;
    for (uint64_t i = 0; i < numel; i += ENDOR_BLOCK) {
        unsigned count = (unsigned)smaller(numel - i, ENDOR_BLOCK);
        stored += kernels->count[shift]((const uint8_t *)dense + (i << shift), count);
    }
    *nnz = stored;
    return ENDOR_OK;
}

/* What the padding behind the last block is filled with. */
static void clear_from(void *part, size_t at, size_t size) {
    memset((uint8_t *)part + at, 0, size - at);
}

endor_status endor_encode(
    endor_target target, const void *dense, size_t size, size_t itemsize, uint64_t first,
    uint64_t stop, uint64_t low, uint64_t high, void *values, size_t values_size, void *bitmap,
    size_t bitmap_size, void *index, size_t index_size) {
    int shift = shift_of(itemsize);
    const kernels *kernels = kernels_of(target);
    if (shift < 0 || size % itemsize != 0) return ENDOR_ARGUMENT;
    uint64_t numel = size / itemsize, nb = endor_blocks(numel);
    if (low > high || high > numel || high << shift > values_size || values_size % LINE != 0 ||
        !sizes_fit(numel, 0, itemsize, 0, bitmap_size, index_size) || first > stop || stop > nb ||
        (stop == nb && values_size != roundup(high << shift, LINE)))
        return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    /* The end of what is ours: another thread may be writing what follows. */
    uint8_t *at = (uint8_t *)values + (low << shift), *end = (uint8_t *)values + (high << shift);
    if (first == 0) memset(index, 0, 8);
    for (uint64_t b = first; b < stop; b++) {
        uint64_t i = b * ENDOR_BLOCK;
        unsigned count = (unsigned)smaller(numel - i, ENDOR_BLOCK);
        uint64_t bits[BLOCK_WORDS];
        unsigned stored =
            kernels->compress[shift]((const uint8_t *)dense + (i << shift), count, bits, at, end);
        if (stored > (size_t)(end - at) >> shift) return ENDOR_ARGUMENT;
        at += (size_t)stored << shift;
        low += stored;
        memcpy((uint8_t *)bitmap + i / 8, bits, (count + 7) / 8);
        memcpy((uint8_t *)index + 8 * (b + 1), &low, sizeof low);
    }
    if (low != high) return ENDOR_ARGUMENT;
    if (stop == nb) {
        clear_from(values, high << shift, values_size);
        clear_from(bitmap, numel / 8 + (numel % 8 != 0), bitmap_size);
        clear_from(index, 8 * (nb + 1), index_size);
    }
    return ENDOR_OK;
}

/* The first byte of a buffer that is not 0, from `at` on; `size` if there is none. */
static uint64_t first_nonzero(const uint8_t *buffer, uint64_t at, uint64_t size) {
    while (at < size && buffer[at] == 0) at++;
    return at;
}

static int64_t entry_at(const void *index, uint64_t entry) {
    int64_t value;
    memcpy(&value, (const uint8_t *)index + 8 * entry, sizeof value);
    return value;
}

static endor_status fault(endor_status status, uint64_t at, uint64_t *offset) {
    *offset = at;
    return status;
}

/* B-3: no bit from bit numel on. */
static endor_status check_bitmap_padding(
    const uint8_t *bitmap, size_t size, uint64_t numel, uint64_t *offset) {
    uint64_t at = numel / 8;
    if (at < size && bitmap[at] >> (numel % 8) != 0) return fault(ENDOR_B3, at, offset);
    if (at < size) at = first_nonzero(bitmap, at + 1, size);
    return at < size ? fault(ENDOR_B3, at, offset) : ENDOR_OK;
}

/* A copy of a block's bitmap, without the bits past its elements; returns how many are set. */
static unsigned take_bits(
    const kernels *kernels, const uint8_t *bitmap, unsigned count, uint64_t bits[BLOCK_WORDS]) {
    if (count == ENDOR_BLOCK) return kernels->take(bitmap, bits);
    uint64_t last[BLOCK_WORDS] = {0};
    memcpy(last, bitmap, (count + 7) / 8);
    if (count % 64 != 0) last[count / 64] &= (UINT64_C(1) << (count % 64)) - 1;
    return kernels->take((const uint8_t *)last, bits);
}

/* Where the first zero among stored elements is. There is one, unless somebody has just written to it. */
static uint64_t first_zero(const uint8_t *values, uint64_t rank, uint64_t stop, int shift) {
    for (; rank < stop; rank++) {
        uint64_t element = 0;
        memcpy(&element, values + (rank << shift), (size_t)1 << shift);
        if (element == 0) break;
    }
    return rank << shift;
}

/* A tensor, its sizes checked, and the kernels that it is decoded with. */
typedef struct tensor {
    const kernels *kernels;
    const endor_parts *parts;
    int shift; /* the logarithm of the size of an element */
    uint64_t numel, nnz, blocks;
} tensor;

/* B-4 and B-7, and for the last block what lies behind it in the bitmap and the index: B-3 and B-8. */
static endor_status check_ends(const tensor *t, int last, uint64_t *offset) {
    const endor_parts *parts = t->parts;
    if (last) {
        endor_status padding = check_bitmap_padding(parts->bitmap, parts->bitmap_size, t->numel, offset);
        if (padding != ENDOR_OK) return padding;
    }
    if (entry_at(parts->index, 0) != 0) return fault(ENDOR_B4, 0, offset);
    if (last) {
        uint64_t at = first_nonzero(parts->index, 8 * (t->blocks + 1), parts->index_size);
        if (at < parts->index_size) return fault(ENDOR_B8, at / 8 * 8, offset);
    }
    if (entry_at(parts->index, t->blocks) != (int64_t)t->nnz) return fault(ENDOR_B7, 8 * t->blocks, offset);
    return ENDOR_OK;
}

/* B-9, for the last block. */
static endor_status check_values_padding(const tensor *t, uint64_t *offset) {
    uint64_t at = first_nonzero(t->parts->values, t->nnz << t->shift, t->parts->values_size);
    return at < t->parts->values_size ? fault(ENDOR_B9, at, offset) : ENDOR_OK;
}

/* Where the values of a block begin: its index entry, which is checked. */
static endor_status rank_of(const tensor *t, uint64_t block, int64_t *rank, uint64_t *offset) {
    *rank = entry_at(t->parts->index, block);
    return *rank < 0 || *rank > (int64_t)t->nnz ? fault(ENDOR_B5, 8 * block, offset) : ENDOR_OK;
}

/* Elements of a block, at most ENDOR_BLOCK. */
static unsigned elements_of(const tensor *t, uint64_t block) {
    return (unsigned)smaller(t->numel - block * ENDOR_BLOCK, ENDOR_BLOCK);
}

/* Words of a bitmap, from .. to - 1. */
typedef struct words {
    unsigned from, to;
} words;

static const words all_words = {0, BLOCK_WORDS};

/* Checks a block (B-5, B-6, and B-10 for the words that are wanted) whose values begin at *rank, which goes on to where
 * they end. Expands those words to their places in `out`, unless that is NULL. Each index entry and each word of the bitmap
 * is read once. If the values are not `stable`, since somebody may write to them, what is looked at for zeros is `out`. */
static endor_status decode_block(
    const tensor *t, uint64_t block, int64_t *rank, words wanted, uint8_t *out, int stream, int stable,
    uint64_t *offset) {
    const kernels *kernels = t->kernels;
    int64_t low = *rank, high = entry_at(t->parts->index, block + 1);
    if (high < low || high > (int64_t)t->nnz) return fault(ENDOR_B5, 8 * (block + 1), offset);
    unsigned count = elements_of(t, block);
    uint64_t bits[BLOCK_WORDS];
    const uint8_t *bitmap = (const uint8_t *)t->parts->bitmap + block * (ENDOR_BLOCK / 8);
    unsigned ones = take_bits(kernels, bitmap, count, bits);
    if (high - low != (int64_t)ones) return fault(ENDOR_B6, 8 * (block + 1), offset);
    unsigned first = wanted.from * 64, stop = wanted.to * 64 < count ? wanted.to * 64 : count;
    if (wanted.from > 0) low += kernels->ones(bits, wanted.from);
    unsigned stored = wanted.to == BLOCK_WORDS ? (unsigned)(high - low)
                                               : kernels->ones(bits + wanted.from, wanted.to - wanted.from);
    const uint8_t *all = t->parts->values, *values = all + ((uint64_t)low << t->shift);
    uint8_t *to = out == NULL ? NULL : out + ((size_t)first << t->shift);
    if (to != NULL)
        kernels->expand[t->shift](
            bits + wanted.from, stop - first, values, all + t->parts->values_size, to, stream);
    int zero = to != NULL && !stable ? kernels->count[t->shift](to, stop - first) != stored
                                     : kernels->any_zero[t->shift](values, stored);
    if (zero) return fault(ENDOR_B10, first_zero(all, (uint64_t)low, (uint64_t)low + stored, t->shift), offset);
    *rank = high;
    return ENDOR_OK;
}

/* The range of blocks of B-11: checked, and expanded to `out` unless that is NULL. */
static endor_status walk(
    const tensor *t, uint64_t first, uint64_t stop, uint8_t *out, int stream, uint64_t *offset) {
    int64_t rank;
    endor_status status = check_ends(t, stop == t->blocks, offset);
    if (status == ENDOR_OK) status = rank_of(t, first, &rank, offset);
    for (uint64_t b = first; b < stop && status == ENDOR_OK; b++) {
        status = decode_block(t, b, &rank, all_words, out, stream, 1, offset);
        if (out != NULL) out += (size_t)ENDOR_BLOCK << t->shift;
    }
    if (status == ENDOR_OK && stop == t->blocks) status = check_values_padding(t, offset);
    return status;
}

endor_status endor_decode(
    endor_target target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t first, uint64_t stop, void *out, size_t out_size, int flags, uint64_t *offset) {
    int shift = shift_of(itemsize);
    const kernels *kernels = kernels_of(target);
    *offset = 0;
    if (shift < 0 || !range_fits(parts, itemsize, numel, nnz, first, stop)) return ENDOR_ARGUMENT;
    uint64_t elements = first == stop ? 0 : smaller(stop * ENDOR_BLOCK, numel) - first * ENDOR_BLOCK;
    if (out_size != elements << shift) return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    /* A tensor without elements has no output that would have to be somewhere. */
    uint8_t nothing[1], *to = out_size == 0 ? nothing : out;
    int stream = (flags & ENDOR_STREAM) != 0 && (uintptr_t)to % ENDOR_STREAM_ALIGNMENT == 0;
    tensor t = {kernels, parts, shift, numel, nnz, endor_blocks(numel)};
    endor_status status = walk(&t, first, stop, to, stream, offset);
    if (stream) kernels->fence();
    return status;
}

endor_status endor_validate(
    endor_target target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t first, uint64_t stop, uint64_t *offset) {
    int shift = shift_of(itemsize);
    const kernels *kernels = kernels_of(target);
    *offset = 0;
    if (shift < 0 || !range_fits(parts, itemsize, numel, nnz, first, stop)) return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    tensor t = {kernels, parts, shift, numel, nnz, endor_blocks(numel)};
    return walk(&t, first, stop, NULL, 0, offset);
}

/* Of rows that are no longer than so many elements, what is so many rows ahead is asked for: memory that is read here and
 * there is waited for otherwise, while what reads on and on the processor itself foresees. */
#define SHORT (2 * (uint64_t)ENDOR_BLOCK)
#define AHEAD 8

/* Asks for what a row of a slice will read. Where its values are is guessed: as if a block's were spread evenly. (Always
 * inline: GCC takes a function that does nothing but this for one without effect, and leaves the call out.) */
INLINE void fetch_row(const tensor *t, uint64_t start, uint64_t count) {
    uint64_t block = start / ENDOR_BLOCK, last = (start + count - 1) / ENDOR_BLOCK;
    const uint8_t *bitmap = t->parts->bitmap, *values = t->parts->values;
    uint64_t at = block * (ENDOR_BLOCK / 8), end = smaller((last + 1) * (ENDOR_BLOCK / 8), t->parts->bitmap_size);
    for (; at < end; at += LINE) __builtin_prefetch(bitmap + at);
    int64_t low = entry_at(t->parts->index, block), high = entry_at(t->parts->index, block + 1);
    if (low < 0 || high < low || high > (int64_t)t->nnz || high - low > ENDOR_BLOCK) return;
    uint64_t stored = (uint64_t)(high - low), first = (uint64_t)low + start % ENDOR_BLOCK * stored / ENDOR_BLOCK;
    at = first << t->shift;
    end = smaller((first + count * stored / ENDOR_BLOCK + 1) << t->shift, t->parts->values_size);
    for (at -= at % LINE; at < end; at += LINE) __builtin_prefetch(values + at);
}

endor_status endor_slice(
    endor_target target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t start, uint64_t count, uint64_t stride, uint64_t rows, void *out, size_t out_size, uint64_t *offset) {
    int shift = shift_of(itemsize);
    const kernels *kernels = kernels_of(target);
    *offset = 0;
    if (shift < 0 || !range_fits(parts, itemsize, numel, nnz, 0, 0)) return ENDOR_ARGUMENT;
    if (count == 0 || rows == 0) return out_size == 0 ? ENDOR_OK : ENDOR_ARGUMENT;
    /* Whether the last element that is wanted is one of the tensor's, without a product that could wrap around. */
    if (count > numel || start > numel - count || (rows > 1 && stride > (numel - count - start) / (rows - 1)) ||
        (out_size >> shift) / count != rows || out_size != (count << shift) * rows)
        return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    tensor t = {kernels, parts, shift, numel, nnz, endor_blocks(numel)};
    uint64_t last = (start + stride * (rows - 1) + count - 1) / ENDOR_BLOCK, have = UINT64_MAX;
    words there = {0, 0};
    endor_status status = check_ends(&t, last == t.blocks - 1, offset);
    /* A block that only some elements are taken of is kept for the next row. Of a block that rows come to again, all words
     * are expanded. */
    int rare = rows == 1 || stride >= ENDOR_BLOCK, fetch = stride >= ENDOR_BLOCK && count <= SHORT;
    /* What the caches would not keep next to what is read is stored past them. */
    int stream = out_size >= STREAM;
    uint8_t some[ENDOR_BLOCK * 8], *to = out;
    for (uint64_t row = 0; row < rows && status == ENDOR_OK; row++, start += stride) {
        int64_t rank;
        if (fetch && rows - row > AHEAD) fetch_row(&t, start + AHEAD * stride, count);
        for (uint64_t i = start; i < start + count && status == ENDOR_OK;) {
            uint64_t block = i / ENDOR_BLOCK, from = i % ENDOR_BLOCK, elements = elements_of(&t, block);
            size_t size = (size_t)smaller(elements - from, start + count - i) << shift;
            int whole = from == 0 && size == (size_t)elements << shift;
            words wanted = {(unsigned)from / 64, (unsigned)(from + (size >> shift) + 63) / 64};
            if (whole || block != have || wanted.from < there.from || wanted.to > there.to) {
                if (i == start) status = rank_of(&t, block, &rank, offset);
                if (!whole) {
                    have = block;
                    there = rare ? wanted : all_words;
                }
                if (status == ENDOR_OK)
                    status = decode_block(
                        &t, block, &rank, whole ? all_words : there, whole ? to : some, 0, 0, offset);
            } else {
                status = rank_of(&t, block + 1, &rank, offset);
            }
            if (!whole && status == ENDOR_OK) copy_past(to, some + (from << shift), size, stream);
            to += size;
            i += size >> shift;
        }
    }
    if (stream) copied_past();
    if (status == ENDOR_OK && last == t.blocks - 1) status = check_values_padding(&t, offset);
    return status;
}
