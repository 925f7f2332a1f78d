/* Parts to dense elements: ranges of blocks, and slices. */
#include "block.h"

/* A tensor and its parts, which have the sizes that it says. */
static endor_status open_parts(endor_target target, const endor_tensor *given, const endor_parts *parts, reader *r) {
    endor_status status = endor_open(target, given, &r->t);
    if (status == ENDOR_ARGUMENT) return status;
    const size_t sizes[5] = {
        parts->values_size, parts->bitmap_size, parts->index_size, parts->bases_size, parts->patches_size};
    r->parts = *parts;
    r->offset = 0;
    return memcmp(sizes, r->t.sizes, sizeof sizes) != 0 ? ENDOR_ARGUMENT : status;
}

/* The range of blocks of B-11: checked, and decoded to `out` unless that is NULL. */
static endor_status walk(reader *r, uint64_t first, uint64_t stop, uint8_t *out, int stream) {
    const tensor *t = &r->t;
    place at;
    endor_status status = endor_check_ends(r, stop == t->blocks);
    if (status == ENDOR_OK) status = endor_place(r, first, &at);
    for (uint64_t b = first; b < stop && status == ENDOR_OK; b++) {
        status = endor_block(r, b, &at, all_words, out, stream, 1);
        if (out != NULL) out += (size_t)ENDOR_BLOCK << t->shift;
    }
    if (status == ENDOR_OK && stop == t->blocks) status = endor_check_padding(r);
    return status;
}

endor_status endor_decode(
    endor_target target, const endor_tensor *given, const endor_parts *parts, uint64_t first, uint64_t stop, void *out,
    size_t out_size, int flags, uint64_t *offset) {
    reader r;
    *offset = 0;
    endor_status status = open_parts(target, given, parts, &r);
    if (status == ENDOR_ARGUMENT || first > stop || stop > r.t.blocks ||
        out_size != (elements_before(&r.t, stop) - elements_before(&r.t, first)) << r.t.shift)
        return ENDOR_ARGUMENT;
    if (status != ENDOR_OK) return status;
    /* A tensor without elements has no output that would have to be somewhere. */
    uint8_t nothing[1], *to = out_size == 0 ? nothing : out;
    int stream = (flags & ENDOR_STREAM) != 0 && (uintptr_t)to % ENDOR_STREAM_ALIGNMENT == 0;
    status = walk(&r, first, stop, to, stream);
    if (stream) r.t.kernels->fence();
    *offset = r.offset;
    return status;
}

endor_status endor_validate(
    endor_target target, const endor_tensor *given, const endor_parts *parts, uint64_t first, uint64_t stop,
    uint64_t *offset) {
    reader r;
    *offset = 0;
    endor_status status = open_parts(target, given, parts, &r);
    if (status == ENDOR_ARGUMENT || first > stop || stop > r.t.blocks) return ENDOR_ARGUMENT;
    if (status != ENDOR_OK) return status;
    status = walk(&r, first, stop, NULL, 0);
    *offset = r.offset;
    return status;
}

/* Whether all runs lie in a tensor and fill `out`, without a product that could wrap around. */
static int runs_fit(const tensor *t, const endor_runs *runs, size_t out_size) {
    uint64_t count = runs->count, rows = runs->rows, elements = out_size >> t->shift;
    if (count > t->numel || runs->start > t->numel - count) return 0;
    if (rows > 1 && runs->stride > (t->numel - count - runs->start) / (rows - 1)) return 0;
    return elements / count == rows && out_size == (count << t->shift) * rows;
}

endor_status endor_slice(
    endor_target target, const endor_tensor *given, const endor_parts *parts, const endor_runs *runs, void *out,
    size_t out_size, uint64_t *offset) {
    reader r;
    *offset = 0;
    endor_status status = open_parts(target, given, parts, &r);
    if (status == ENDOR_ARGUMENT) return status;
    const tensor *t = &r.t;
    uint64_t start = runs->start, count = runs->count, rows = runs->rows;
    if (count == 0 || rows == 0) return out_size == 0 ? ENDOR_OK : ENDOR_ARGUMENT;
    if (!runs_fit(t, runs, out_size)) return ENDOR_ARGUMENT;
    if (status != ENDOR_OK) return status;
    uint64_t last = (start + runs->stride * (rows - 1) + count - 1) / ENDOR_BLOCK, have = UINT64_MAX;
    words there = {0, 0};
    status = endor_check_ends(&r, last == t->blocks - 1);
    /* A block that only some elements are taken of is kept for the next row. Of a block that rows come to again, all words
     * are decoded. */
    int rare = rows == 1 || runs->stride >= ENDOR_BLOCK;
    uint8_t some[ENDOR_BLOCK * 8], *to = out;
    for (uint64_t row = 0; row < rows && status == ENDOR_OK; row++, start += runs->stride) {
        place at;
        for (uint64_t i = start; i < start + count && status == ENDOR_OK;) {
            uint64_t block = i / ENDOR_BLOCK, from = i % ENDOR_BLOCK, elements = elements_of(t, block);
            size_t size = (size_t)smaller(elements - from, start + count - i) << t->shift;
            int whole = from == 0 && size == (size_t)elements << t->shift;
            words wanted = {(unsigned)from / 64, (unsigned)(from + (size >> t->shift) + 63) / 64};
            if (whole || block != have || wanted.from < there.from || wanted.to > there.to) {
                if (i == start) status = endor_place(&r, block, &at);
                if (!whole) {
                    have = block;
                    there = rare ? wanted : all_words;
                }
                if (status == ENDOR_OK)
                    status = endor_block(&r, block, &at, whole ? all_words : there, whole ? to : some, 0, 0);
            } else {
                status = endor_place(&r, block + 1, &at);
            }
            if (!whole && status == ENDOR_OK) memcpy(to, some + (from << t->shift), size);
            to += size;
            i += size >> t->shift;
        }
    }
    if (status == ENDOR_OK && last == t->blocks - 1) status = endor_check_padding(&r);
    *offset = r.offset;
    return status;
}
