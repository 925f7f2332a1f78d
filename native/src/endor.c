/* The public functions: arguments checked, a target chosen, block after block given to its kernels. */
#include "endor.h"

#include "cpu.h"
#include "kernels.h"

#define LINE 64u

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
    /* Asked anew each time: the answer is a few loads, and there is no state to share between threads. */
    if (endor_cpu_has(ENDOR_AVX512)) return ENDOR_AVX512;
    return endor_cpu_has(ENDOR_AVX2) ? ENDOR_AVX2 : ENDOR_SCALAR;
}

static const kernels *kernels_of(endor_target target) {
    if (target == ENDOR_AUTO) target = endor_best();
    if (!endor_cpu_has(target)) return NULL;
    switch (target) {
#ifdef ENDOR_X86
    case ENDOR_AVX512: return &endor_avx512;
    case ENDOR_AVX2: return &endor_avx2;
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

endor_status endor_encode(
    endor_target target, const void *dense, size_t size, size_t itemsize, void *values,
    size_t values_size, void *bitmap, size_t bitmap_size, void *index, size_t index_size) {
    int shift = shift_of(itemsize);
    const kernels *kernels = kernels_of(target);
    if (shift < 0 || size % itemsize != 0) return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    uint64_t numel = size / itemsize, rank = 0;
    if (!sizes_fit(numel, 0, itemsize, 0, bitmap_size, index_size)) return ENDOR_ARGUMENT;
    uint8_t *at = values, *end = at + values_size;
    memset(index, 0, index_size);
    for (uint64_t b = 0; b < endor_blocks(numel); b++) {
        uint64_t i = b * ENDOR_BLOCK;
        unsigned count = (unsigned)smaller(numel - i, ENDOR_BLOCK);
        uint64_t bits[BLOCK_WORDS] = {0};
        unsigned stored =
            kernels->compress[shift]((const uint8_t *)dense + (i << shift), count, bits, at, end);
        if (stored > (size_t)(end - at) >> shift) return ENDOR_ARGUMENT;
        at += (size_t)stored << shift;
        rank += stored;
        size_t lines = (size_t)smaller(bitmap_size - i / 8, sizeof bits);
        memcpy((uint8_t *)bitmap + i / 8, bits, lines);
        memcpy((uint8_t *)index + 8 * (b + 1), &rank, sizeof rank);
    }
    if (values_size != roundup(rank << shift, LINE)) return ENDOR_ARGUMENT;
    memset(at, 0, (size_t)(end - at));
    return ENDOR_OK;
}

/* The first byte of a buffer that is not 0, from `at` on; `size` if there is none. */
static uint64_t first_nonzero(const uint8_t *buffer, uint64_t at, uint64_t size) {
    while (at < size && buffer[at] == 0) at++;
    return at;
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

/* A copy of a block's bitmap, without the bits past its elements. */
static void copy_bits(
    const uint8_t *bitmap, uint64_t block, unsigned count, uint64_t bits[BLOCK_WORDS]) {
    memset(bits, 0, BLOCK_WORDS * sizeof bits[0]);
    memcpy(bits, bitmap + block * (ENDOR_BLOCK / 8), (count + 7) / 8);
    if (count % 64 != 0) bits[count / 64] &= (UINT64_C(1) << (count % 64)) - 1;
}

endor_status endor_decode(
    endor_target target, const endor_parts *parts, size_t itemsize, uint64_t numel, uint64_t nnz,
    uint64_t first, uint64_t stop, void *out, size_t out_size, int flags, uint64_t *offset) {
    int shift = shift_of(itemsize);
    const kernels *kernels = kernels_of(target);
    uint64_t nb = endor_blocks(numel);
    *offset = 0;
    if (shift < 0 || first > stop || stop > nb ||
        !sizes_fit(numel, nnz, itemsize, parts->values_size, parts->bitmap_size, parts->index_size))
        return ENDOR_ARGUMENT;
    if (out_size != (first == stop ? 0 : (smaller(stop * ENDOR_BLOCK, numel) - first * ENDOR_BLOCK) << shift))
        return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    const uint8_t *values = parts->values, *bitmap = parts->bitmap;
    if (stop == nb) {
        endor_status padding = check_bitmap_padding(bitmap, parts->bitmap_size, numel, offset);
        if (padding != ENDOR_OK) return padding;
    }
    if (entry_at(parts->index, 0) != 0) return fault(ENDOR_B4, 0, offset);
    if (stop == nb) {
        uint64_t at = first_nonzero(parts->index, 8 * (nb + 1), parts->index_size);
        if (at < parts->index_size) return fault(ENDOR_B8, at / 8 * 8, offset);
    }
    if (entry_at(parts->index, nb) != (int64_t)nnz) return fault(ENDOR_B7, 8 * nb, offset);
    int stream = (flags & ENDOR_STREAM) != 0 && (uintptr_t)out % LINE == 0;
    int64_t low = entry_at(parts->index, first);
    if (low < 0 || low > (int64_t)nnz) return fault(ENDOR_B5, 8 * first, offset);
    for (uint64_t b = first; b < stop; b++) {
        /* Each entry is read once: what was checked is what is used, even if somebody writes to it. */
        int64_t high = entry_at(parts->index, b + 1);
        if (high < low || high > (int64_t)nnz) return fault(ENDOR_B5, 8 * (b + 1), offset);
        unsigned count = (unsigned)smaller(numel - b * ENDOR_BLOCK, ENDOR_BLOCK);
        uint64_t bits[BLOCK_WORDS];
        copy_bits(bitmap, b, count, bits);
        if (high - low != (int64_t)kernels->ones(bits)) return fault(ENDOR_B6, 8 * (b + 1), offset);
        const uint8_t *at = values + ((uint64_t)low << shift);
        uint8_t *to = (uint8_t *)out + ((b - first) * ENDOR_BLOCK << shift);
        if (kernels->expand[shift](bits, count, at, values + parts->values_size, to, stream)) {
            uint64_t rank = (uint64_t)low, element = 0;
            for (; rank < (uint64_t)high; rank++, element = 0) {
                memcpy(&element, values + (rank << shift), itemsize);
                if (element == 0) break;
            }
            return fault(ENDOR_B10, rank << shift, offset);
        }
        low = high;
    }
    if (stop == nb) {
        uint64_t at = first_nonzero(values, nnz << shift, parts->values_size);
        if (at < parts->values_size) return fault(ENDOR_B9, at, offset);
    }
    return ENDOR_OK;
}
