/* One block: what the rules B and E say of it, and its elements. */
#include "block.h"

static endor_status fault(reader *r, endor_status status, uint64_t at) {
    r->offset = at;
    return status;
}

/* The first byte of a buffer that is not 0, from `at` on; `size` if there is none. */
static uint64_t first_nonzero(const uint8_t *buffer, uint64_t at, uint64_t size) {
    while (at < size && buffer[at] == 0) at++;
    return at;
}

/* An entry of the index, by where it is. */
static int64_t entry_at(const reader *r, uint64_t at) {
    int64_t entry;
    memcpy(&entry, (const uint8_t *)r->parts.index + at, sizeof entry);
    ONCE(entry);
    return entry;
}

/* The rows of the index: one that counts stored elements, with a bitmap; one that counts patches, if values are split. */
static unsigned rows_of(const tensor *t) {
    return (unsigned)(t->bitmap + t->split);
}

/* What a row ends with. */
static uint64_t last_of(const tensor *t, unsigned row) {
    return t->bitmap && row == 0 ? t->stored : t->patches;
}

/* B-3: no bit from bit numel on. */
static endor_status check_bitmap_padding(reader *r) {
    const uint8_t *bitmap = r->parts.bitmap;
    uint64_t size = r->parts.bitmap_size, at = r->t.numel / 8;
    if (at < size && bitmap[at] >> (r->t.numel % 8) != 0) return fault(r, ENDOR_B3, at);
    if (at < size) at = first_nonzero(bitmap, at + 1, size);
    return at < size ? fault(r, ENDOR_B3, at) : ENDOR_OK;
}

endor_status endor_check_ends(reader *r, int last) {
    const tensor *t = &r->t;
    if (last && t->bitmap) {
        endor_status status = check_bitmap_padding(r);
        if (status != ENDOR_OK) return status;
    }
    for (unsigned row = 0; row < rows_of(t); row++)
        if (entry_at(r, row * t->row) != 0) return fault(r, ENDOR_B4, row * t->row);
    for (unsigned row = 0; row < rows_of(t) && last; row++) {
        uint64_t stop = (row + 1) * t->row;
        uint64_t at = first_nonzero(r->parts.index, row * t->row + 8 * (t->blocks + 1), stop);
        if (at < stop) return fault(r, ENDOR_B8, at / 8 * 8);
    }
    for (unsigned row = 0; row < rows_of(t); row++) {
        uint64_t at = row * t->row + 8 * t->blocks;
        if (entry_at(r, at) != (int64_t)last_of(t, row)) return fault(r, ENDOR_B7, at);
    }
    return ENDOR_OK;
}

/* E-2: no bit of a rank from n on. */
static endor_status check_groups_padding(reader *r) {
    const tensor *t = &r->t;
    const uint8_t *values = r->parts.values;
    uint64_t at = t->stored / GROUP * t->fields.group, size = r->parts.values_size;
    unsigned some = t->stored % GROUP;
    if (some > 0) {
        uint64_t rows = at + 64 * t->fields.bytes;
        for (uint64_t stop = at + t->fields.group, j = 0; at < stop; at++, j++) {
            int found = at < rows ? j % 64 >= some && values[at] != 0
                                  : j % 8 >= some / 8 && values[at] >> (j % 8 == some / 8 ? some % 8 : 0) != 0;
            if (found) return fault(r, ENDOR_E2, at);
        }
    }
    at = first_nonzero(values, at, size);
    return at < size ? fault(r, ENDOR_E2, at) : ENDOR_OK;
}

endor_status endor_check_padding(reader *r) {
    const tensor *t = &r->t;
    uint64_t at;
    if (!t->split) {
        at = first_nonzero(r->parts.values, t->stored << t->shift, r->parts.values_size);
        return at < r->parts.values_size ? fault(r, ENDOR_B9, at) : ENDOR_OK;
    }
    endor_status status = check_groups_padding(r);
    if (status != ENDOR_OK) return status;
    at = first_nonzero(r->parts.bases, t->blocks, r->parts.bases_size);
    if (at < r->parts.bases_size) return fault(r, ENDOR_E4, at);
    at = first_nonzero(r->parts.patches, 3 * t->patches, r->parts.patches_size);
    return at < r->parts.patches_size ? fault(r, ENDOR_E8, at) : ENDOR_OK;
}

/* An entry of the index, which is not less than `least` nor more than the last one (B-5). */
static endor_status take_entry(reader *r, unsigned row, uint64_t block, uint64_t least, uint64_t *entry) {
    uint64_t at = row * r->t.row + 8 * block;
    int64_t taken = entry_at(r, at);
    if (taken < (int64_t)least || taken > (int64_t)last_of(&r->t, row)) return fault(r, ENDOR_B5, at);
    *entry = (uint64_t)taken;
    return ENDOR_OK;
}

endor_status endor_place(reader *r, uint64_t block, place *at) {
    const tensor *t = &r->t;
    endor_status status = ENDOR_OK;
    *at = (place){.rank = elements_before(t, block)};
    if (t->bitmap) status = take_entry(r, 0, block, 0, &at->rank);
    if (t->split && status == ENDOR_OK) status = take_entry(r, rows_of(t) - 1, block, 0, &at->patch);
    return status;
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

/* The rank of the first zero among elements. There is one, unless somebody has just written to it. */
static unsigned first_zero(const uint8_t *elements, unsigned count, unsigned shift) {
    unsigned rank = 0;
    for (; rank < count; rank++) {
        uint64_t element = 0;
        memcpy(&element, elements + ((size_t)rank << shift), (size_t)1 << shift);
        if (element == 0) break;
    }
    return rank;
}

/* Stored elements of a block: how many there are, those that are wanted, and where these are. */
typedef struct stored {
    unsigned count, from, some;
    const uint8_t *elements, *end; /* nothing may be read from `end` on */
} stored;

/* Room for the groups of a block, of which the first and the last may not be full, and a whole word behind them. */
typedef struct scratch {
    _Alignas(64) uint8_t elements[4 * (ENDOR_BLOCK + 3 * GROUP)];
} scratch;

/* Split values: checks the base of a block and its patches (B-5, E-3, E-5 to E-7), and joins the elements that are wanted, if
 * they are to be looked at. *zeros: whether there may be a zero among them. */
static endor_status join(
    reader *r, uint64_t block, place *at, stored *s, int wanted, scratch *joined, int *zeros) {
    const tensor *t = &r->t;
    const fields *fields = &t->fields;
    uint64_t next, rank = at->rank + s->from;
    endor_status status = take_entry(r, rows_of(t) - 1, block + 1, at->patch, &next);
    if (status != ENDOR_OK) return status;
    unsigned base = ((const uint8_t *)r->parts.bases)[block];
    if (base > (1u << fields->exponent) - (1u << fields->width) || (s->count == 0 && base != 0))
        return fault(r, ENDOR_E3, block);
    uint8_t *elements = joined->elements + (rank % GROUP << t->shift);
    s->elements = elements;
    s->end = joined->elements + sizeof joined->elements;
    *zeros = t->bitmap && base == 0;
    if (s->some > 0 && (wanted || *zeros || next > at->patch)) {
        const uint8_t *groups = (const uint8_t *)r->parts.values + rank / GROUP * fields->group;
        unsigned count = ((unsigned)(rank % GROUP) + s->some + GROUP - 1) / GROUP;
        t->kernels->join[t->shift](fields, groups, count, base, joined->elements);
    }
    if (next > at->patch) {
        patching p = {
            .patches = (const uint8_t *)r->parts.patches + 3 * at->patch,
            .count = next - at->patch,
            .base = base,
            .stored = s->count,
            .from = s->from,
            .to = s->from + s->some,
            .elements = elements,
        };
        status = t->kernels->patch[t->shift](fields, &p);
        if (status == ENDOR_E7) return fault(r, status, (at->rank + p.rank) / GROUP * fields->group);
        if (status != ENDOR_OK) return fault(r, status, 3 * (at->patch + p.patch));
        *zeros |= t->bitmap && p.zeros;
        at->patch = next;
    }
    return ENDOR_OK;
}

endor_status endor_block(reader *r, uint64_t block, place *at, words wanted, uint8_t *out, int stream, int stable) {
    const tensor *t = &r->t;
    const kernels *kernels = t->kernels;
    unsigned count = elements_of(t, block), first = wanted.from * 64;
    unsigned stop = wanted.to * 64 < count ? wanted.to * 64 : count;
    uint64_t low = at->rank, high = low + count, bits[BLOCK_WORDS];
    stored s = {.count = count, .from = first, .some = stop - first};
    endor_status status;
    if (t->bitmap) {
        status = take_entry(r, 0, block + 1, low, &high);
        if (status != ENDOR_OK) return status;
        s.count = take_bits(kernels, (const uint8_t *)r->parts.bitmap + block * (ENDOR_BLOCK / 8), count, bits);
        if (high - low != s.count) return fault(r, ENDOR_B6, 8 * (block + 1));
        s.from = wanted.from > 0 ? kernels->ones(bits, wanted.from) : 0;
        s.some = wanted.to == BLOCK_WORDS ? s.count - s.from
                                          : kernels->ones(bits + wanted.from, wanted.to - wanted.from);
    }
    scratch joined;
    int zeros = 1;
    if (t->split) {
        status = join(r, block, at, &s, out != NULL, &joined, &zeros);
        if (status != ENDOR_OK) return status;
        /* Nobody else writes to those. */
        stable = 1;
    } else {
        s.elements = (const uint8_t *)r->parts.values + ((low + s.from) << t->shift);
        s.end = (const uint8_t *)r->parts.values + r->parts.values_size;
    }
    uint8_t *to = out == NULL ? NULL : out + ((size_t)first << t->shift);
    if (to != NULL && t->bitmap)
        kernels->expand[t->shift](bits + wanted.from, stop - first, s.elements, s.end, to, stream);
    else if (to != NULL)
        kernels->copy(s.elements, (size_t)s.some << t->shift, to, stream);
    if (zeros)
        zeros = to != NULL && !stable ? kernels->count[t->shift](to, stop - first) != s.some
                                      : kernels->any_zero[t->shift](s.elements, s.some);
    if (zeros) {
        uint64_t rank = low + s.from + first_zero(s.elements, s.some, t->shift);
        return fault(r, ENDOR_B10, t->split ? rank / GROUP * t->fields.group : rank << t->shift);
    }
    at->rank = high;
    return ENDOR_OK;
}
