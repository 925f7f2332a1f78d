/* What the harnesses share: the bytes of an input one after the other, and buffers between pages that must not be touched. */
#ifndef ENDOR_FUZZ_COMMON_H
#define ENDOR_FUZZ_COMMON_H

#include "../tests/check.h"

/* The most elements of a tensor: three blocks and a bit. */
#define MOST (3 * ENDOR_BLOCK + 100)

/* An input. Behind its end it goes on with zeros. */
typedef struct input {
    const uint8_t *at, *end;
} input;

static uint64_t take(input *in, unsigned bytes) {
    uint64_t number = 0;
    for (unsigned i = 0; i < bytes && in->at < in->end; i++) number |= (uint64_t)*in->at++ << 8 * i;
    return number;
}

static void take_to(input *in, uint8_t *to, size_t size) {
    size_t left = (size_t)(in->end - in->at), taken = size < left ? size : left;
    memcpy(to, in->at, taken);
    memset(to + taken, 0, size - taken);
    in->at += taken;
}

/* Room for a buffer of any size up to MOST elements of 8 bytes, mapped once. */
typedef struct room {
    uint8_t *first, *behind;
} room;

/* A buffer of `size` bytes that ends, or begins, right at a page that cannot be touched. */
static uint8_t *place(room *room, size_t size, int at_the_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), length = roundup(8 * MOST + 64, page);
    if (room->first == NULL) {
        uint8_t *pages = mmap(NULL, length + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(pages != MAP_FAILED);
        CHECK(mprotect(pages + page, length, PROT_READ | PROT_WRITE) == 0);
        room->first = pages + page;
        room->behind = room->first + length;
    }
    CHECK(size <= length);
    return at_the_end ? room->behind - size : room->first;
}

/* How many elements: often few, which is much faster, or a few more than whole blocks have. */
static size_t take_numel(input *in, int many) {
    size_t numel = (size_t)take(in, 2);
    return many ? numel % (MOST + 1) : numel / 256 % 4 * ENDOR_BLOCK * (numel % 4 < 2) + numel / 4 % 64;
}

/* Any encoding that there is. */
static endor_encoding take_encoding(input *in) {
    unsigned which = (unsigned)take(in, 1), widths;
    if (which % 2 == 0) return raw((size_t)1 << which / 2 % 4);
    kind of = floats[which / 2 % LENGTH(floats)];
    widths = of.exponent > 4 ? 4 : of.exponent - 1;
    unsigned kept = (unsigned)take(in, 1) % (of.mantissa + 1), width = 1 + (unsigned)take(in, 1) % widths;
    return split(of, which >> 7 ? ENDOR_ALL : ENDOR_BITMAP, kept, width);
}

/* Takes from elements the bits that an encoding does not keep. */
static void drop_bits(const endor_encoding *encoding, uint8_t *dense, size_t numel) {
    if (encoding->values == ENDOR_RAW) return;
    uint32_t dropped = (UINT32_C(1) << (encoding->mantissa - encoding->kept)) - 1;
    for (size_t i = 0; i < numel * encoding->itemsize; i++)
        dense[i] &= (uint8_t)~(dropped >> 8 * (i % encoding->itemsize));
}

/* What a target counts in elements that are to be encoded. */
static endor_tensor counted(endor_target target, endor_encoding encoding, const uint8_t *dense, size_t numel) {
    endor_tensor tensor = {.encoding = encoding, .numel = numel};
    size_t size = numel * encoding.itemsize;
    CHECK(endor_count(target, dense, size, encoding.itemsize, &tensor.stored) == ENDOR_OK);
    if (encoding.values == ENDOR_SPLIT) {
        endor_survey_result survey;
        CHECK(endor_survey(target, &encoding, dense, size, &survey) == ENDOR_OK && survey.nnz == tensor.stored);
        tensor.patches = survey.patches[encoding.positions][encoding.width - 1];
    }
    if (encoding.positions == ENDOR_ALL) tensor.stored = numel;
    return tensor;
}

/* All blocks. */
static endor_range whole(const endor_tensor *tensor) {
    return (endor_range){0, endor_blocks(tensor->numel), 0, tensor->stored, 0, tensor->patches};
}

#endif
