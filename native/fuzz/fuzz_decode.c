/* Harness: parts that are anything, or that were right before something in them was changed. All targets end in the same
 * way, by decoding and by validating; nothing outside of the buffers is touched; and what was accepted is the canonical
 * encoding of what came out.
 */
#include "common.h"

static room rooms[5], again[3];

/* An input that says "build" has its bitmap and its values taken from it, and an index that fits them. */
static uint64_t build(
    input *in, size_t itemsize, size_t numel, uint8_t *values, uint8_t *bitmap, uint8_t *index, endor_parts *parts) {
    uint8_t bits[MOST / 8 + 64] = {0}, pattern[16];
    uint64_t nnz = 0, entry = 0;
    take_to(in, pattern, sizeof pattern);
    for (size_t i = 0; i < numel; i++) {
        if (pattern[i / 8 % sizeof pattern] >> (i % 8) & 1) {
            bits[i / 8] |= (uint8_t)(1u << (i % 8));
            nnz++;
        }
    }
    *parts = parts_of(itemsize, numel, nnz);
    memset(values, 0, 8 * MOST + 64);
    memset(index, 0, parts->index_size);
    memcpy(bitmap, bits, parts->bitmap_size);
    for (uint64_t rank = 0; rank < nnz; rank++)
        values[rank * itemsize + rank % itemsize] = (uint8_t)(1 + rank % 255);
    for (size_t i = 0; i < numel; i++) {
        entry += bits[i / 8] >> (i % 8) & 1;
        memcpy(index + 8 * (i / ENDOR_BLOCK + 1), &entry, 8);
    }
    return nnz;
}

/* Adds the same to some entries of the index, one behind the other: their differences are still right. */
static void shift(input *in, uint8_t *index, uint64_t entries) {
    static const uint64_t by[] = {1, UINT64_MAX, (uint64_t)INT64_MAX + 1, 4096, (uint64_t)-20000};
    uint64_t amount = by[take(in, 1) % LENGTH(by)], at = take(in, 1) % entries, words = 1 + take(in, 1) % 3;
    for (; words && at < entries; words--, at++) {
        uint64_t word;
        memcpy(&word, index + 8 * at, 8);
        word += amount;
        memcpy(index + 8 * at, &word, 8);
    }
}

static void change(input *in, uint8_t *part, size_t size) {
    if (size == 0) return;
    size_t at = (size_t)(take(in, 2) % size);
    uint64_t how = take(in, 1);
    /* Every other time near the end, where the padding is. */
    if (how >> 7) at = size - 1 - at % 64;
    if (how % 4 == 0)
        memset(part + at, 0, size - at < 8 ? size - at : 8);
    else if (how % 4 == 1)
        part[at] ^= (uint8_t)take(in, 1);
    else
        part[at] ^= (uint8_t)(1u << how / 4 % 8);
}

typedef struct outcome {
    endor_status status;
    uint64_t offset;
} outcome;

static void check_canonical(
    endor_target target, size_t itemsize, size_t numel, uint64_t nnz, const endor_parts *parts, const uint8_t *out) {
    uint64_t counted;
    CHECK(endor_count(target, out, numel * itemsize, itemsize, &counted) == ENDOR_OK && counted == nnz);
    uint8_t *values = place(&again[0], parts->values_size, 1), *bitmap = place(&again[1], parts->bitmap_size, 1);
    uint8_t *index = place(&again[2], parts->index_size, 1);
    CHECK(endor_encode(
              target, out, numel * itemsize, itemsize, 0, endor_blocks(numel), 0, nnz, values, parts->values_size,
              bitmap, parts->bitmap_size, index, parts->index_size) == ENDOR_OK);
    CHECK(memcmp(values, parts->values, parts->values_size) == 0);
    CHECK(memcmp(bitmap, parts->bitmap, parts->bitmap_size) == 0);
    CHECK(memcmp(index, parts->index, parts->index_size) == 0);
}

/* A slice, which may make no sense, of parts that may be good: the same on every target, and the right elements. */
static void check_slices(
    input *in, const endor_parts *parts, size_t itemsize, size_t numel, uint64_t nnz, int at_the_end,
    const uint8_t *good) {
    uint64_t start = take(in, 2), count = take(in, 2), stride = take(in, 2), rows = take(in, 1);
    if (count * rows > MOST) count %= 1 + MOST / (rows + 1);
    size_t out_size = (size_t)(count * rows) * itemsize;
    uint8_t *out = place(&rooms[4], out_size, at_the_end);
    outcome scalar = {ENDOR_OK, 0};
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        outcome sliced;
        sliced.status = endor_slice(
            targets[i], parts, itemsize, numel, nnz, start, count, stride, rows, out, out_size, &sliced.offset);
        if (targets[i] == ENDOR_SCALAR) scalar = sliced;
        CHECK(sliced.status == scalar.status && sliced.offset == scalar.offset);
        if (good == NULL) continue;
        int inside = rows == 0 || count == 0 || start + (rows - 1) * stride + count <= numel;
        CHECK(sliced.status == (inside ? ENDOR_OK : ENDOR_ARGUMENT));
        for (uint64_t r = 0; r < rows && inside; r++) {
            size_t from = (size_t)(start + r * stride) * itemsize, size = (size_t)count * itemsize;
            CHECK(count == 0 || memcmp(out + r * size, good + from, size) == 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t values[8 * MOST + 64], bitmap[MOST], index[MOST];
    input in = {data, data + size};
    unsigned choices = (unsigned)take(&in, 1);
    size_t itemsize = (size_t)1 << choices % 4, numel = (size_t)take(&in, 2) % (MOST + 1);
    int at_the_end = choices >> 2 & 1, flags = choices >> 3 & 1 ? ENDOR_STREAM : 0;
    uint64_t first = take(&in, 1), stop = take(&in, 1), nb = endor_blocks(numel), nnz;
    endor_parts parts;
    if (choices >> 4 & 1) {
        nnz = build(&in, itemsize, numel, values, bitmap, index, &parts);
        for (uint64_t changes = take(&in, 1) % 4; changes; changes--) {
            uint64_t which = take(&in, 1) % 6;
            if (which == 0) change(&in, values, parts.values_size);
            if (which == 1) change(&in, bitmap, parts.bitmap_size);
            if (which == 2) change(&in, index, parts.index_size);
            if (which >= 3) shift(&in, index, nb + 1);
        }
        /* The metadata of a file may lie too; its sizes and the index can be made to fit. */
        if (choices >> 5 & 1 && nnz) {
            nnz -= take(&in, 2) % nnz;
            memcpy(index + 8 * nb, &nnz, 8);
            parts = parts_of(itemsize, numel, nnz);
        }
    } else {
        nnz = numel ? take(&in, 2) % (numel + 1) : 0;
        parts = parts_of(itemsize, numel, nnz);
        take_to(&in, index, parts.index_size);
        take_to(&in, bitmap, parts.bitmap_size);
        take_to(&in, values, parts.values_size);
    }
    /* All blocks, or a range, which may make no sense. */
    if (choices >> 6 & 1) {
        first = 0;
        stop = nb;
    } else if (choices >> 7 & 1) {
        first %= nb + 1;
        stop = first + stop % (nb - first + 1);
    }
    parts.values = memcpy(place(&rooms[0], parts.values_size, at_the_end), values, parts.values_size);
    parts.bitmap = memcpy(place(&rooms[1], parts.bitmap_size, at_the_end), bitmap, parts.bitmap_size);
    parts.index = memcpy(place(&rooms[2], parts.index_size, at_the_end), index, parts.index_size);
    size_t elements = 0;
    if (first < stop && stop <= nb)
        elements = (size_t)((stop * ENDOR_BLOCK < numel ? stop * ENDOR_BLOCK : numel) - first * ENDOR_BLOCK);
    size_t out_size = elements * itemsize;
    uint8_t *out = place(&rooms[3], out_size, at_the_end);
    static uint8_t expected[8 * MOST];
    outcome scalar = {ENDOR_OK, 0};
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        outcome decoded, validated;
        memset(out, 0xA5, out_size);
        decoded.status = endor_decode(
            targets[i], &parts, itemsize, numel, nnz, first, stop, out, out_size, flags, &decoded.offset);
        validated.status =
            endor_validate(targets[i], &parts, itemsize, numel, nnz, first, stop, &validated.offset);
        if (targets[i] == ENDOR_SCALAR) {
            scalar = decoded;
            memcpy(expected, out, out_size);
        }
        CHECK(decoded.status == scalar.status && decoded.offset == scalar.offset);
        CHECK(validated.status == scalar.status && validated.offset == scalar.offset);
        if (scalar.status != ENDOR_OK) continue;
        CHECK(memcmp(out, expected, out_size) == 0);
        if (first == 0 && stop == nb) check_canonical(targets[i], itemsize, numel, nnz, &parts, out);
    }
    int all = first == 0 && stop == nb;
    check_slices(&in, &parts, itemsize, numel, nnz, at_the_end, all && scalar.status == ENDOR_OK ? expected : NULL);
    return 0;
}
