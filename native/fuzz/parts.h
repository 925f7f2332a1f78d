/* Parts that are anything, or that were right before something in them was changed, from the bytes of an input. */
#ifndef ENDOR_FUZZ_PARTS_H
#define ENDOR_FUZZ_PARTS_H

#include "common.h"

/* The most bytes of a part. */
#define PART (8 * MOST + 64)

static room rooms[8];
static uint8_t part[5][PART];

static unsigned rows_of(const endor_tensor *tensor) {
    return (tensor->encoding.positions == ENDOR_BITMAP ? 1u : 0) + (tensor->encoding.values == ENDOR_SPLIT ? 1u : 0);
}

/* An input that says "build" has the positions, the exponents and some of the rest of its elements taken from it. */
static endor_tensor build(input *in, endor_encoding encoding, size_t numel, size_t sizes[5]) {
    uint8_t pattern[16], exponents[16], *dense = place(&rooms[5], numel * encoding.itemsize, 1), *at[5];
    take_to(in, pattern, sizeof pattern);
    take_to(in, exponents, sizeof exponents);
    for (size_t i = 0; i < numel; i++) {
        uint64_t element = 0;
        if (pattern[i / 8 % sizeof pattern] >> (i % 8) & 1) {
            element = 1 + i % 255;
            if (encoding.values == ENDOR_SPLIT) {
                uint64_t exponent = exponents[i / 3 % sizeof exponents] & ((1u << encoding.exponent) - 1);
                element = i % 3 == 0 ? UINT64_C(1) << (8 * encoding.itemsize - 1) : 0;
                element |= exponent << encoding.mantissa | i % (UINT64_C(1) << encoding.mantissa);
            }
        }
        memcpy(dense + i * encoding.itemsize, &element, encoding.itemsize);
    }
    drop_bits(&encoding, dense, numel);
    endor_tensor tensor = counted(ENDOR_SCALAR, encoding, dense, numel);
    endor_range range = whole(&tensor);
    CHECK(endor_sizes(&tensor, sizes) == ENDOR_OK);
    for (int k = 0; k < 5; k++) at[k] = memset(part[k], 0, sizes[k]);
    endor_room room = as_room(at, sizes);
    CHECK(endor_encode(ENDOR_SCALAR, &tensor, dense, numel * encoding.itemsize, &range, &room) == ENDOR_OK);
    return tensor;
}

/* Adds the same to some entries of a row of the index, one behind the other: their differences are still right. */
static void shift(input *in, const endor_tensor *tensor, size_t size) {
    static const uint64_t by[] = {1, UINT64_MAX, (uint64_t)INT64_MAX + 1, 4096, (uint64_t)-20000};
    unsigned how = (unsigned)take(in, 1), rows = rows_of(tensor);
    uint64_t amount = by[how % LENGTH(by)], entries = endor_blocks(tensor->numel) + 1;
    uint8_t *row = part[2] + size / rows * (how / 8 % rows);
    uint64_t at = take(in, 1) % entries, words = 1 + take(in, 1) % 3;
    for (; words && at < entries; words--, at++) {
        uint64_t word;
        memcpy(&word, row + 8 * at, 8);
        word += amount;
        memcpy(row + 8 * at, &word, 8);
    }
}

/* Where in a part its padding begins, or the last thing before that. */
static size_t edge_of(const endor_tensor *tensor, const size_t sizes[5], uint64_t which) {
    const endor_encoding *e = &tensor->encoding;
    uint64_t group = 8 * (1 + e->kept + e->width), blocks = endor_blocks(tensor->numel);
    switch (which) {
    case 0: return (size_t)(e->values == ENDOR_SPLIT ? tensor->stored / 64 * group : tensor->stored * e->itemsize);
    case 1: return (size_t)(tensor->numel / 8);
    case 2: return sizes[2] / rows_of(tensor) * (rows_of(tensor) - 1) + 8 * (size_t)blocks;
    case 3: return (size_t)blocks;
    default: return tensor->patches ? (size_t)(3 * (tensor->patches - 1)) : 0;
    }
}

static void change(input *in, uint8_t *changed, size_t edge, size_t size) {
    if (size == 0) return;
    size_t at = (size_t)(take(in, 2) % size);
    uint64_t how = take(in, 1);
    /* Often near the end, or near where the padding begins. */
    if (how >> 6 == 2) at = size - 1 - at % 64;
    if (how >> 6 == 3) at = edge + at % 4 < size ? edge + at % 4 : size - 1;
    if (how % 4 == 0)
        memset(changed + at, 0, size - at < 8 ? size - at : 8);
    else if (how % 4 == 1)
        changed[at] ^= (uint8_t)take(in, 1);
    else
        changed[at] ^= (uint8_t)(1u << how / 4 % 8);
}

/* Counts that lie, as the metadata of a file may; its sizes and the index can be made to fit. */
static void lie(input *in, endor_tensor *tensor, size_t sizes[5]) {
    uint64_t *count = tensor->patches && take(in, 1) % 2 ? &tensor->patches : &tensor->stored;
    if (*count == 0 || (count == &tensor->stored && tensor->encoding.positions == ENDOR_ALL)) return;
    *count -= take(in, 2) % *count;
    if (tensor->patches > tensor->stored) tensor->patches = tensor->stored;
    CHECK(endor_sizes(tensor, sizes) == ENDOR_OK);
    uint8_t *last = part[2] + 8 * endor_blocks(tensor->numel);
    if (tensor->encoding.positions == ENDOR_BITMAP) memcpy(last, &tensor->stored, 8);
    if (tensor->encoding.values == ENDOR_SPLIT)
        memcpy(last + sizes[2] / rows_of(tensor) * (rows_of(tensor) - 1), &tensor->patches, 8);
}

/* What is to be decoded: a tensor, its parts in part[], a range of blocks, which may make no sense, and how. */
typedef struct request {
    endor_tensor tensor;
    size_t sizes[5];
    int at_the_end, flags;
    uint64_t first, stop;
    size_t out_size;
} request;

static request take_request(input *in) {
    request r = {.at_the_end = 0};
    endor_encoding encoding = take_encoding(in);
    unsigned choices = (unsigned)take(in, 1);
    size_t numel = take_numel(in, choices >> 6 & 1);
    uint64_t nb = endor_blocks(numel);
    r.at_the_end = choices & 1;
    r.flags = choices >> 1 & 1 ? ENDOR_STREAM : 0;
    r.first = take(in, 1);
    r.stop = take(in, 1);
    r.tensor = (endor_tensor){.encoding = encoding, .numel = numel};
    if (choices >> 2 & 1 || choices >> 7) {
        r.tensor = build(in, encoding, numel, r.sizes);
        /* Mostly one: what it breaks is not hidden by another. */
        static const uint8_t often[] = {0, 1, 1, 1, 1, 1, 2, 3};
        for (unsigned changes = often[take(in, 1) % LENGTH(often)]; changes; changes--) {
            uint64_t which = take(in, 1) % 7;
            if (which < 5)
                change(in, part[which], edge_of(&r.tensor, r.sizes, which), r.sizes[which]);
            else
                shift(in, &r.tensor, r.sizes[2]);
        }
        if (choices >> 3 & 1) lie(in, &r.tensor, r.sizes);
    } else {
        r.tensor.stored = encoding.positions == ENDOR_ALL ? numel : take(in, 2) % (numel + 1);
        if (encoding.values == ENDOR_SPLIT) r.tensor.patches = take(in, 2) % (r.tensor.stored + 1);
        CHECK(endor_sizes(&r.tensor, r.sizes) == ENDOR_OK);
        static const int order[] = {2, 1, 3, 4, 0};
        for (int k = 0; k < 5; k++) take_to(in, part[order[k]], r.sizes[order[k]]);
    }
    /* All blocks, or a range, which may make no sense. */
    if (choices >> 4 & 1) {
        r.first = 0;
        r.stop = nb;
    } else if (choices >> 5 & 1) {
        r.first %= nb + 1;
        r.stop = r.first + r.stop % (nb - r.first + 1);
    }
    if (r.first < r.stop && r.stop <= nb) {
        uint64_t end = r.stop * ENDOR_BLOCK < numel ? r.stop * ENDOR_BLOCK : numel;
        r.out_size = (size_t)(end - r.first * ENDOR_BLOCK) * encoding.itemsize;
    }
    return r;
}

#endif
