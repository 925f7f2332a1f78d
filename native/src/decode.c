/* Parts to dense elements: ranges of blocks, and slices. */
#include "block.h"
#include "copy.h"

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

/* A slice of so many bytes and more is stored past the caches. */
#define PAST ((size_t)4 << 20)
/* Of rows that are no longer than so many elements, what is so many rows ahead is asked for: memory that is read here and
 * there is waited for otherwise, while what reads on and on the processor itself foresees. */
#define SHORT (2 * (uint64_t)ENDOR_BLOCK)
#define AHEAD 8

/* Asks for bytes of a part. */
INLINE void fetch(const void *part, size_t size, uint64_t from, uint64_t to) {
    for (from -= from % LINE, to = smaller(to, size); from < to; from += LINE)
        __builtin_prefetch((const uint8_t *)part + from);
}

/* Asks for what a row of a slice will read. Where its values are is guessed: as if a block's were spread evenly. (Always
 * inline: GCC takes a function that does nothing but this for one without effect, and leaves the call out.) */
INLINE void fetch_row(const reader *r, uint64_t start, uint64_t count) {
    const tensor *t = &r->t;
    uint64_t block = start / ENDOR_BLOCK, last = (start + count - 1) / ENDOR_BLOCK, low = start, some = count;
    if (t->bitmap) {
        int64_t entries[2];
        fetch(r->parts.bitmap, r->parts.bitmap_size, block * (ENDOR_BLOCK / 8), (last + 1) * (ENDOR_BLOCK / 8));
        memcpy(entries, (const uint8_t *)r->parts.index + 8 * block, sizeof entries);
        if (entries[0] < 0 || entries[1] < entries[0] || entries[1] > (int64_t)t->stored) return;
        uint64_t stored = smaller((uint64_t)(entries[1] - entries[0]), ENDOR_BLOCK);
        low = (uint64_t)entries[0] + start % ENDOR_BLOCK * stored / ENDOR_BLOCK;
        some = count * stored / ENDOR_BLOCK + 1;
    }
    if (t->split)
        fetch(r->parts.values, r->parts.values_size, low / GROUP * t->fields.group,
              ((low + some) / GROUP + 1) * t->fields.group);
    else
        fetch(r->parts.values, r->parts.values_size, low << t->shift, (low + some) << t->shift);
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
    int rare = rows == 1 || runs->stride >= ENDOR_BLOCK, ahead = runs->stride >= ENDOR_BLOCK && count <= SHORT;
    /* What the caches would not keep next to what is read is stored past them. */
    int past = out_size >= PAST;
    uint8_t some[ENDOR_BLOCK * 8], *to = out;
    for (uint64_t row = 0; row < rows && status == ENDOR_OK; row++, start += runs->stride) {
        place at;
        if (ahead && rows - row > AHEAD) fetch_row(&r, start + AHEAD * runs->stride, count);
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
            if (!whole && status == ENDOR_OK) copy_past(to, some + (from << t->shift), size, past);
            to += size;
            i += size >> t->shift;
        }
    }
    if (past) copied_past();
    if (status == ENDOR_OK && last == t->blocks - 1) status = endor_check_padding(&r);
    *offset = r.offset;
    return status;
}
