/* Dense elements to parts: counted, surveyed, encoded block by block. */
#include "tensor.h"

/* Room for the elements of a block, or so many symbols behind those of a group that is not full, and for the whole words that
 * kernels write. */
#define SCRATCH (4 * (ENDOR_BLOCK + 2 * GROUP))

endor_status endor_count(endor_target target, const void *dense, size_t size, size_t itemsize, uint64_t *nnz) {
    int shift = endor_shift(itemsize);
    const kernels *kernels = endor_kernels(target);
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

/* How many lower bits of a mantissa are 0 in all elements, of which `any` has all bits. */
static unsigned zeros_below(uint32_t any, unsigned mantissa) {
    unsigned zeros = 0;
    while (zeros < mantissa && (any >> zeros & 1) == 0) zeros++;
    return zeros;
}

endor_status endor_survey(
    endor_target target, const endor_encoding *encoding, const void *dense, size_t size, endor_survey_result *result) {
    const kernels *kernels = endor_kernels(target);
    if (!endor_splits(encoding) || size % encoding->itemsize != 0) return ENDOR_ARGUMENT;
    if (kernels == NULL) return ENDOR_TARGET;
    int shift = endor_shift(encoding->itemsize);
    fields fields = fields_of(encoding->exponent, encoding->mantissa, 0, 1);
    uint64_t numel = size >> shift;
    uint32_t any = 0;
    *result = (endor_survey_result){0};
    for (uint64_t i = 0; i < numel; i += ENDOR_BLOCK) {
        unsigned count = (unsigned)smaller(numel - i, ENDOR_BLOCK);
        uint64_t bits[BLOCK_WORDS];
        uint8_t elements[SCRATCH];
        uint16_t counts[EXPONENTS];
        unsigned stored = kernels->compress[shift](
            (const uint8_t *)dense + (i << shift), count, bits, elements, elements + sizeof elements);
        memset(elements + ((size_t)stored << shift), 0, (size_t)GROUP << shift);
        any |= kernels->tally[shift](&fields, elements, stored, counts);
        result->nnz += stored;
        for (int positions = ENDOR_BITMAP; positions <= ENDOR_ALL; positions++) {
            uint16_t sums[WINDOWS] = {0};
            memcpy(sums, counts, sizeof counts);
            /* The exponent of a zero element is 0. */
            unsigned all = positions == ENDOR_ALL ? count : stored;
            sums[0] = (uint16_t)(sums[0] + all - stored);
            for (unsigned width = 1; width <= 4; width++)
                result->patches[positions][width - 1] += all - kernels->widen(sums, width);
        }
    }
    result->kept = fields.mantissa - zeros_below(any, fields.mantissa);
    return ENDOR_OK;
}

/* The base of a block (W-9): the smallest of those whose window holds the most, `*held`. */
static unsigned base_of(const tensor *t, const uint16_t counts[EXPONENTS], unsigned *held) {
    uint16_t sums[WINDOWS] = {0};
    memcpy(sums, counts, EXPONENTS * sizeof *counts);
    *held = 0;
    for (unsigned width = 1; width <= t->fields.width; width++)
        *held = t->kernels->widen(sums, width);
    unsigned base = 0;
    while (sums[base] != *held) base++;
    return base;
}

/* What is being written: where, and how much may still be. */
typedef struct writer {
    const tensor *t;
    const endor_range *range;
    const endor_room *parts;
    uint64_t rank, patch;       /* of those that come next */
    unsigned held, before;      /* symbols that wait for their group to be full; so many of them are another range's */
    _Alignas(64) uint8_t symbols[SCRATCH]; /* the first of them is that of a group */
} writer;

/* Adds what a group has to what it has already from other ranges. */
static void add_group(const writer *w, const uint8_t *symbols, uint64_t group) {
    const tensor *t = w->t;
    uint8_t made[8 * 32], *at = (uint8_t *)w->parts->values + group * t->fields.group;
    t->kernels->split[t->shift](&t->fields, symbols, 1, made);
    for (unsigned i = 0; i < t->fields.group; i++) at[i] |= made[i];
}

/* Writes the groups that are full. */
static void write_groups(writer *w, unsigned stored) {
    const tensor *t = w->t;
    uint8_t *symbols = w->symbols;
    uint64_t group = w->rank / GROUP;
    unsigned held = w->held + stored, full = held / GROUP;
    if (full > 0) {
        unsigned shared = w->before > 0;
        if (shared) add_group(w, symbols, group);
        w->before = 0;
        t->kernels->split[t->shift](
            &t->fields, symbols + shared * ((size_t)GROUP << t->shift), full - shared,
            (uint8_t *)w->parts->values + (group + shared) * t->fields.group);
    }
    w->held = held % GROUP;
    memmove(symbols, symbols + ((size_t)full * GROUP << t->shift), (size_t)w->held << t->shift);
}

/* Writes the values, base and patches of a block, of which `elements` are stored. */
static endor_status write_split(writer *w, uint64_t block, const uint8_t *elements, unsigned stored) {
    const tensor *t = w->t;
    const fields *fields = &t->fields;
    uint16_t counts[EXPONENTS];
    unsigned held, dropped = fields->mantissa - fields->kept;
    uint32_t any = t->kernels->tally[t->shift](fields, elements, stored, counts);
    if ((any & ((UINT32_C(1) << dropped) - 1)) != 0) return ENDOR_ARGUMENT;
    unsigned base = base_of(t, counts, &held);
    if (stored - held > w->range->patch_high - w->patch) return ENDOR_ARGUMENT;
    ((uint8_t *)w->parts->bases)[block] = (uint8_t)base;
    t->kernels->code[t->shift](
        fields, base, elements, stored, w->symbols + ((size_t)w->held << t->shift),
        (uint8_t *)w->parts->patches + 3 * w->patch);
    w->patch += stored - held;
    write_groups(w, stored);
    return ENDOR_OK;
}

/* Takes the stored elements of a block and writes all that there is of it. */
static endor_status write_block(writer *w, uint64_t block, const uint8_t *dense) {
    const tensor *t = w->t;
    unsigned count = elements_of(t, block), stored = count;
    uint8_t *index = w->parts->index;
    uint64_t left = w->range->high - w->rank;
    endor_status status = ENDOR_OK;
    _Alignas(64) uint8_t elements[SCRATCH];
    if (t->bitmap) {
        uint64_t bits[BLOCK_WORDS];
        /* The end of what is ours: another thread may be writing what follows. */
        uint8_t *to = elements, *end = elements + sizeof elements;
        if (!t->split) {
            to = (uint8_t *)w->parts->values + (w->rank << t->shift);
            end = (uint8_t *)w->parts->values + (w->range->high << t->shift);
        }
        stored = t->kernels->compress[t->shift](dense, count, bits, to, end);
        if (stored > left) return ENDOR_ARGUMENT;
        memcpy((uint8_t *)w->parts->bitmap + block * (ENDOR_BLOCK / 8), bits, (count + 7) / 8);
    } else {
        memcpy(elements, dense, (size_t)count << t->shift);
    }
    if (t->split) {
        memset(elements + ((size_t)stored << t->shift), 0, (size_t)GROUP << t->shift);
        status = write_split(w, block, elements, stored);
    }
    w->rank += stored;
    if (t->bitmap) {
        memcpy(index + 8 * (block + 1), &w->rank, sizeof w->rank);
        index += t->row;
    }
    if (t->split) memcpy(index + 8 * (block + 1), &w->patch, sizeof w->patch);
    return status;
}

/* What the padding behind the last block is filled with. */
static void clear_from(void *part, uint64_t at, size_t size) {
    if (at < size) memset((uint8_t *)part + at, 0, size - at);
}

static void clear_padding(const tensor *t, const endor_room *parts) {
    clear_from(parts->bitmap, t->numel / 8 + (t->numel % 8 != 0), parts->bitmap_size);
    for (uint64_t row = 0; row < parts->index_size; row += t->row)
        clear_from((uint8_t *)parts->index + row, 8 * (t->blocks + 1), t->row);
    if (t->split) {
        clear_from(parts->values, roundup(t->stored, GROUP) / GROUP * t->fields.group, parts->values_size);
        clear_from(parts->bases, t->blocks, parts->bases_size);
        clear_from(parts->patches, 3 * t->patches, parts->patches_size);
    } else {
        clear_from(parts->values, t->stored << t->shift, parts->values_size);
    }
}

/* Whether a range begins and ends where it can, as far as that is known without its elements. */
static int range_fits(const tensor *t, const endor_range *r) {
    if (r->first > r->stop || r->stop > t->blocks || r->low > r->high || r->high > t->stored ||
        r->patch_low > r->patch_high || r->patch_high > t->patches)
        return 0;
    if (r->first == 0 && (r->low != 0 || r->patch_low != 0)) return 0;
    if (r->stop == t->blocks && (r->high != t->stored || r->patch_high != t->patches)) return 0;
    return t->bitmap || (r->low == elements_before(t, r->first) && r->high == elements_before(t, r->stop));
}

endor_status endor_encode(
    endor_target target, const endor_tensor *given, const void *dense, size_t size, const endor_range *range,
    const endor_room *parts) {
    tensor t;
    endor_status status = endor_open(target, given, &t);
    if (status == ENDOR_ARGUMENT) return status;
    const size_t sizes[5] = {
        parts->values_size, parts->bitmap_size, parts->index_size, parts->bases_size, parts->patches_size};
    if (memcmp(sizes, t.sizes, sizeof sizes) != 0 || size % given->encoding.itemsize != 0 || size >> t.shift != t.numel ||
        !range_fits(&t, range))
        return ENDOR_ARGUMENT;
    if (status != ENDOR_OK) return status;
    /* What has no bytes need not be anywhere. */
    uint8_t nothing[1];
    endor_room room = *parts;
    if (room.values_size == 0) room.values = nothing;
    if (room.patches_size == 0) room.patches = nothing;
    writer w = {.t = &t, .range = range, .parts = &room, .rank = range->low, .patch = range->patch_low};
    w.held = w.before = range->low % GROUP;
    if (range->first == 0)
        for (uint64_t row = 0; row < parts->index_size; row += t.row) memset((uint8_t *)parts->index + row, 0, 8);
    for (uint64_t b = range->first; b < range->stop; b++) {
        status = write_block(&w, b, (const uint8_t *)dense + (b * ENDOR_BLOCK << t.shift));
        if (status != ENDOR_OK) return status;
    }
    if (w.rank != range->high || w.patch != range->patch_high) return ENDOR_ARGUMENT;
    if (t.split && w.held > w.before) {
        memset(w.symbols + ((size_t)w.held << t.shift), 0, (size_t)(GROUP - w.held) << t.shift);
        add_group(&w, w.symbols, w.rank / GROUP);
    }
    if (range->stop == t.blocks) clear_padding(&t, parts);
    return ENDOR_OK;
}
