/* Harness: parts that are anything, or that were right before something in them was changed. All targets end in the same
 * way, by decoding and by validating; nothing outside of the buffers is touched; and what was accepted comes out of its canonical
 * encoding again, which is what was accepted unless its bases are not the best.
 */
#include "parts.h"

static room again[6];

typedef struct outcome {
    endor_status status;
    uint64_t offset;
} outcome;

static void check_canonical(endor_target target, const endor_tensor *tensor, const endor_parts *parts, const uint8_t *out) {
    const endor_encoding *e = &tensor->encoding;
    size_t size = (size_t)tensor->numel * e->itemsize, sizes[5];
    endor_tensor canonical = counted(target, *e, out, (size_t)tensor->numel);
    uint8_t *at[5], *third = place(&again[5], size, 1);
    uint64_t offset;
    CHECK(canonical.stored == tensor->stored && canonical.patches <= tensor->patches);
    CHECK(endor_sizes(&canonical, sizes) == ENDOR_OK);
    for (int k = 0; k < 5; k++) at[k] = memset(place(&again[k], sizes[k], 1), 0, sizes[k]);
    endor_room room = as_room(at, sizes);
    endor_parts made = as_parts(at, sizes);
    endor_range range = whole(&canonical);
    CHECK(endor_encode(target, &canonical, out, size, &range, &room) == ENDOR_OK);
    CHECK(endor_decode(target, &canonical, &made, 0, range.stop, third, size, 0, &offset) == ENDOR_OK);
    CHECK(memcmp(third, out, size) == 0);
    CHECK(memcmp(made.bitmap, parts->bitmap, parts->bitmap_size) == 0);
    if (e->values == ENDOR_SPLIT && memcmp(made.bases, parts->bases, parts->bases_size) != 0) return;
    CHECK(canonical.patches == tensor->patches);
    CHECK(memcmp(made.values, parts->values, parts->values_size) == 0);
    CHECK(memcmp(made.index, parts->index, parts->index_size) == 0);
    CHECK(memcmp(made.patches, parts->patches, parts->patches_size) == 0);
}

/* A slice, which may make no sense, of parts that may be good: the same on every target, and the right elements. */
static void check_slices(
    input *in, const endor_tensor *tensor, const endor_parts *parts, int at_the_end, const uint8_t *good) {
    size_t itemsize = tensor->encoding.itemsize;
    uint64_t start = take(in, 2), count = take(in, 2), stride = take(in, 2), rows = take(in, 1);
    if (count * rows > MOST) count %= 1 + MOST / (rows + 1);
    endor_runs runs = {start, count, stride, rows};
    size_t out_size = (size_t)(count * rows) * itemsize;
    uint8_t *out = place(&rooms[7], out_size, at_the_end);
    outcome scalar = {ENDOR_OK, 0};
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        outcome sliced;
        sliced.status = endor_slice(targets[i], tensor, parts, &runs, out, out_size, &sliced.offset);
        if (targets[i] == ENDOR_SCALAR) scalar = sliced;
        CHECK(sliced.status == scalar.status && sliced.offset == scalar.offset);
        if (good == NULL) continue;
        int inside = rows == 0 || count == 0 || start + (rows - 1) * stride + count <= tensor->numel;
        CHECK(sliced.status == (inside ? ENDOR_OK : ENDOR_ARGUMENT));
        for (uint64_t r = 0; r < rows && inside; r++) {
            size_t from = (size_t)(start + r * stride) * itemsize, size = (size_t)count * itemsize;
            CHECK(count == 0 || memcmp(out + r * size, good + from, size) == 0);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, data + size};
    request r = take_request(&in);
    endor_tensor tensor = r.tensor;
    uint64_t first = r.first, stop = r.stop;
    size_t out_size = r.out_size;
    uint8_t *at[5];
    for (int k = 0; k < 5; k++) at[k] = memcpy(place(&rooms[k], r.sizes[k], r.at_the_end), part[k], r.sizes[k]);
    endor_parts parts = as_parts(at, r.sizes);
    uint8_t *out = place(&rooms[6], out_size, r.at_the_end);
    static uint8_t expected[8 * MOST];
    outcome scalar = {ENDOR_OK, 0};
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        outcome decoded, validated;
        memset(out, 0xA5, out_size);
        decoded.status = endor_decode(targets[i], &tensor, &parts, first, stop, out, out_size, r.flags, &decoded.offset);
        validated.status = endor_validate(targets[i], &tensor, &parts, first, stop, &validated.offset);
        if (targets[i] == ENDOR_SCALAR) {
            scalar = decoded;
            memcpy(expected, out, out_size);
        }
        CHECK(decoded.status == scalar.status && decoded.offset == scalar.offset);
        CHECK(validated.status == scalar.status && validated.offset == scalar.offset);
        if (scalar.status != ENDOR_OK) continue;
        CHECK(memcmp(out, expected, out_size) == 0);
    }
    int all = first == 0 && stop == endor_blocks(tensor.numel);
    if (all && scalar.status == ENDOR_OK) check_canonical(ENDOR_AUTO, &tensor, &parts, out);
    check_slices(&in, &tensor, &parts, r.at_the_end, all && scalar.status == ENDOR_OK ? expected : NULL);
    return 0;
}
