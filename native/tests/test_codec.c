/* All targets against a model of the format and against each other, on good parts and bad, every buffer between pages that must
 * not be touched.
 *
 * `test_codec [rounds]`: prints what it has done and exits with 0, or says what differs and aborts.
 */
#include "check.h"
#include "random.h"

/* `size` bytes that end, or begin, right at a page that cannot be touched. */
typedef struct guarded {
    uint8_t *pages;
    size_t length;
    uint8_t *at;
} guarded;

static guarded guard(size_t size, int at_the_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (size + page - 1) / page * page;
    guarded g = {NULL, inner + 2 * page, NULL};
    g.pages = mmap(NULL, g.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(g.pages != MAP_FAILED);
    if (inner) CHECK(mprotect(g.pages + page, inner, PROT_READ | PROT_WRITE) == 0);
    g.at = g.pages + page + (at_the_end ? inner - size : 0);
    memset(g.at, 0xA5, size);
    return g;
}

static void release(guarded g) {
    munmap(g.pages, g.length);
}

/* A tensor, its dense elements, its parts, and room to decode to. */
typedef struct sample {
    endor_tensor tensor;
    int at_the_end;
    size_t size, sizes[5];
    guarded dense, part[5], out;
} sample;

static endor_parts parts_of(const sample *s) {
    uint8_t *at[5];
    for (int i = 0; i < 5; i++) at[i] = s->part[i].at;
    return as_parts(at, s->sizes);
}

static endor_room room_of(const sample *s) {
    uint8_t *at[5];
    for (int i = 0; i < 5; i++) at[i] = s->part[i].at;
    return as_room(at, s->sizes);
}

static uint64_t element_at(const sample *s, size_t i) {
    uint64_t element = 0;
    memcpy(&element, s->dense.at + i * s->tensor.encoding.itemsize, s->tensor.encoding.itemsize);
    return element;
}

static unsigned exponent_of(const sample *s, uint64_t element) {
    const endor_encoding *e = &s->tensor.encoding;
    return (unsigned)(element >> e->mantissa & ((1u << e->exponent) - 1));
}

static size_t block_end(const sample *s, size_t block) {
    size_t end = (block + 1) * ENDOR_BLOCK;
    return end < s->tensor.numel ? end : (size_t)s->tensor.numel;
}

static int is_stored(const sample *s, size_t i) {
    return s->tensor.encoding.positions == ENDOR_ALL || element_at(s, i) != 0;
}

/* The base of a block, and how many of its stored elements are outside of its window: the definition (W-9), tried out. */
static unsigned model_base(const sample *s, size_t block, unsigned width, unsigned *outside) {
    unsigned counts[256] = {0}, stored = 0, best = 0, most = 0;
    for (size_t i = block * ENDOR_BLOCK; i < block_end(s, block); i++)
        if (is_stored(s, i)) {
            counts[exponent_of(s, element_at(s, i))]++;
            stored++;
        }
    for (unsigned base = 0; base + (1u << width) <= 1u << s->tensor.encoding.exponent; base++) {
        unsigned sum = 0;
        for (unsigned code = 0; code < 1u << width; code++) sum += counts[base + code];
        if (sum > most) {
            most = sum;
            best = base;
        }
    }
    *outside = stored - most;
    return best;
}

/* Sets the bits of a stored element's symbol in its group. */
static void model_value(const sample *s, uint64_t rank, uint64_t residue, uint64_t code) {
    unsigned bits = s->tensor.encoding.kept + 1, bytes = bits / 8, lane = rank % 64;
    uint8_t *group = s->part[0].at + rank / 64 * 8 * (bits + s->tensor.encoding.width);
    for (unsigned p = 0; p < bytes; p++) group[64 * p + lane] = (uint8_t)(residue >> 8 * p);
    for (unsigned q = 0; q < bits % 8 + s->tensor.encoding.width; q++) {
        uint64_t bit = q < bits % 8 ? residue >> (8 * bytes + q) & 1 : code >> (q - bits % 8) & 1;
        group[64 * bytes + 8 * q + lane / 8] |= (uint8_t)(bit << lane % 8);
    }
}

/* The encoding as the specification says it, one element after the other. */
static void model_encode(const sample *s) {
    const endor_encoding *e = &s->tensor.encoding;
    uint64_t rank = 0, patch = 0, blocks = endor_blocks(s->tensor.numel), row = s->sizes[2] / 8;
    int has_bitmap = e->positions == ENDOR_BITMAP, is_split = e->values == ENDOR_SPLIT;
    uint64_t *ranks = (uint64_t *)(void *)s->part[2].at, *patches = ranks + (has_bitmap ? row / 2 : 0);
    for (int i = 0; i < 5; i++) memset(s->part[i].at, 0, s->sizes[i]);
    for (size_t b = 0; b < blocks; b++) {
        unsigned outside, base = is_split ? model_base(s, b, e->width, &outside) : 0, within = 0;
        if (is_split) s->part[3].at[b] = (uint8_t)base;
        for (size_t i = b * ENDOR_BLOCK; i < block_end(s, b); i++) {
            if (!is_stored(s, i)) continue;
            uint64_t element = element_at(s, i);
            if (has_bitmap) s->part[1].at[i / 8] |= (uint8_t)(1u << i % 8);
            if (is_split) {
                unsigned exponent = exponent_of(s, element), inside = exponent - base < 1u << e->width;
                uint64_t mantissa = element & ((UINT64_C(1) << e->mantissa) - 1);
                uint64_t sign = element >> (e->exponent + e->mantissa);
                model_value(s, rank, sign << e->kept | mantissa >> (e->mantissa - e->kept), inside ? exponent - base : 0);
                if (!inside) {
                    uint8_t three[3] = {(uint8_t)within, (uint8_t)(within >> 8), (uint8_t)exponent};
                    memcpy(s->part[4].at + 3 * patch++, three, 3);
                }
            } else {
                memcpy(s->part[0].at + rank * e->itemsize, &element, e->itemsize);
            }
            rank++;
            within++;
        }
        if (has_bitmap) memcpy(ranks + b + 1, &rank, 8);
        if (is_split) memcpy(patches + b + 1, &patch, 8);
    }
    CHECK(rank == s->tensor.stored && patch == s->tensor.patches);
}

/* What elements are like. */
enum { ANYTHING, WEIGHTS, EXPONENTS, SPECIALS, BASE_ONLY, CONTENTS };

static uint64_t element_of(const endor_encoding *e, int content, size_t i) {
    uint64_t bits = any(), sign = bits >> 63, mantissa = bits & ((UINT64_C(1) << e->mantissa) - 1), exponent;
    unsigned exponents = 1u << e->exponent;
    switch (content) {
    case WEIGHTS: exponent = exponents / 2 - 1 - (unsigned)__builtin_ctzll(any() | 1u << (e->exponent / 2 + 1)); break;
    case EXPONENTS: exponent = i % exponents; break;
    case SPECIALS:
        exponent = any() % 4 ? (any() % 2 ? exponents - 1 : 0) : any() % exponents;
        if (any() % 2) mantissa = 0;
        break;
    case BASE_ONLY: exponent = 1; break;
    default: return bits;
    }
    return sign << (e->exponent + e->mantissa) | exponent << e->mantissa | mantissa;
}

static void make_parts(sample *s) {
    CHECK(endor_sizes(&s->tensor, s->sizes) == ENDOR_OK);
    for (int i = 0; i < 5; i++) s->part[i] = guard(s->sizes[i], s->at_the_end);
}

/* Elements, so many per cent of them not zero; counted, and encoded by the model. */
static sample make(endor_encoding encoding, size_t numel, unsigned density, int content, int at_the_end) {
    sample s = {.tensor = {.encoding = encoding, .numel = numel}, .at_the_end = at_the_end, .size = encoding.itemsize * numel};
    s.dense = guard(s.size, at_the_end);
    s.out = guard(s.size, at_the_end);
    uint64_t keep = ~UINT64_C(0);
    if (encoding.values == ENDOR_SPLIT) keep <<= encoding.mantissa - encoding.kept;
    for (size_t i = 0; i < numel; i++) {
        uint64_t element = any() % 100 < density ? element_of(&encoding, content, i) & keep : 0;
        memcpy(s.dense.at + i * encoding.itemsize, &element, encoding.itemsize);
        if (is_stored(&s, i)) s.tensor.stored++;
    }
    for (size_t b = 0; b < endor_blocks(numel) && encoding.values == ENDOR_SPLIT; b++) {
        unsigned outside;
        model_base(&s, b, encoding.width, &outside);
        s.tensor.patches += outside;
    }
    make_parts(&s);
    model_encode(&s);
    return s;
}

/* After its elements and counts have been changed. */
static void encode_anew(sample *s) {
    for (int i = 0; i < 5; i++) release(s->part[i]);
    make_parts(s);
    model_encode(s);
}

static void drop(sample s) {
    release(s.dense);
    release(s.out);
    for (int i = 0; i < 5; i++) release(s.part[i]);
}

static endor_status encode_range(endor_target target, const sample *s, const endor_range *range) {
    endor_room room = room_of(s);
    return endor_encode(target, &s->tensor, s->dense.at, s->size, range, &room);
}

/* So many blocks at a time, the last ones first: no range may touch what belongs to another. */
static void encode_blocks(endor_target target, const sample *s, uint64_t step) {
    const endor_encoding *e = &s->tensor.encoding;
    uint64_t stop = endor_blocks(s->tensor.numel), high = s->tensor.stored, patch_high = s->tensor.patches;
    do {
        uint64_t first = stop > step ? stop - step : 0, stored, patches = 0;
        size_t from = (size_t)first * ENDOR_BLOCK, end = stop == 0 ? 0 : block_end(s, (size_t)stop - 1);
        uint8_t *dense = s->dense.at + from * e->itemsize;
        CHECK(endor_count(target, dense, (end - from) * e->itemsize, e->itemsize, &stored) == ENDOR_OK);
        if (e->values == ENDOR_SPLIT) {
            endor_survey_result result;
            CHECK(endor_survey(target, e, dense, (end - from) * e->itemsize, &result) == ENDOR_OK);
            CHECK(result.nnz == stored && result.kept <= e->kept);
            patches = result.patches[e->positions][e->width - 1];
        }
        if (e->positions == ENDOR_ALL) stored = end - from;
        endor_range range = {first, stop, high - stored, high, patch_high - patches, patch_high};
        CHECK(encode_range(target, s, &range) == ENDOR_OK);
        stop = first;
        high -= stored;
        patch_high -= patches;
    } while (stop > 0);
    CHECK(high == 0 && patch_high == 0);
}

static endor_status decode(
    endor_target target, const sample *s, uint64_t first, uint64_t stop, int flags, uint64_t *offset) {
    endor_parts parts = parts_of(s);
    size_t from = (size_t)first * ENDOR_BLOCK * s->tensor.encoding.itemsize;
    size_t end = first < stop ? block_end(s, (size_t)stop - 1) * s->tensor.encoding.itemsize : from;
    return endor_decode(
        target, &s->tensor, &parts, first, stop, s->out.at + (first < stop ? from : 0), end - from, flags, offset);
}

static endor_status validate(endor_target target, const sample *s, uint64_t first, uint64_t stop, uint64_t *offset) {
    endor_parts parts = parts_of(s);
    return endor_validate(target, &s->tensor, &parts, first, stop, offset);
}

/* Encodes as a whole and by blocks, and decodes so, on every target. */
static void check_round_trip(sample s) {
    uint64_t blocks = endor_blocks(s.tensor.numel), offset;
    sample t = s;
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        for (uint64_t step = blocks ? blocks : 1; step > 0; step /= 2) {
            for (int k = 0; k < 5; k++) t.part[k] = guard(s.sizes[k], s.at_the_end);
            if (s.tensor.encoding.values == ENDOR_SPLIT) memset(t.part[0].at, 0, s.sizes[0]);
            encode_blocks(targets[i], &t, step);
            for (int k = 0; k < 5; k++) {
                CHECK(!memcmp(t.part[k].at, s.part[k].at, s.sizes[k]));
                release(t.part[k]);
            }
        }
        CHECK(validate(targets[i], &s, 0, blocks, &offset) == ENDOR_OK);
        for (int flags = 0; flags <= ENDOR_STREAM; flags++) {
            memset(s.out.at, 0x5A, s.size);
            CHECK(decode(targets[i], &s, 0, blocks, flags, &offset) == ENDOR_OK);
            CHECK(!memcmp(s.out.at, s.dense.at, s.size));
            memset(s.out.at, 0x5A, s.size);
            for (uint64_t b = 0; b < blocks; b++)
                CHECK(decode(targets[i], &s, b, b + 1, flags, &offset) == ENDOR_OK);
            CHECK(!memcmp(s.out.at, s.dense.at, s.size));
        }
    }
}

static const size_t lengths[] = {0,   1,   7,    8,    9,    15,   16,   17,   63,   64,    65,   127,  129, 511,
                                 512, 513, 1000, 4095, 4096, 4097, 4160, 8191, 8192, 8193, 12345};
static const unsigned densities[] = {0, 3, 50, 97, 100};

static void test_raw(void) {
    for (size_t size = 1; size <= 8; size *= 2)
        for (size_t n = 0; n < LENGTH(lengths); n++)
            for (size_t d = 0; d < LENGTH(densities); d++) {
                sample s = make(raw(size), lengths[n], densities[d], ANYTHING, (n + d) % 2);
                check_round_trip(s);
                drop(s);
            }
}

/* Every float, width and number of kept bits; lengths, densities and contents by turns. */
static void test_split(void) {
    unsigned turn = 0;
    for (size_t f = 0; f < LENGTH(floats); f++)
        for (uint32_t positions = ENDOR_BITMAP; positions <= ENDOR_ALL; positions++)
            for (uint32_t width = 1; width <= 4 && width < floats[f].exponent; width++)
                for (uint32_t kept = 0; kept <= floats[f].mantissa; kept++)
                    for (int content = 0; content < CONTENTS; content++, turn++) {
                        size_t numel = lengths[turn % LENGTH(lengths)];
                        unsigned density = densities[turn / 3 % LENGTH(densities)];
                        sample s = make(split(floats[f], positions, kept, width), numel, density, content, turn % 2);
                        check_round_trip(s);
                        drop(s);
                    }
    for (size_t n = 0; n < LENGTH(lengths); n++)
        for (size_t d = 0; d < LENGTH(densities); d++)
            for (int content = 0; content < CONTENTS; content++)
                for (uint32_t positions = ENDOR_BITMAP; positions <= ENDOR_ALL; positions++, turn++) {
                    endor_encoding encoding = split(floats[2], positions, 7, 1 + turn % 4);
                    sample s = make(encoding, lengths[n], densities[d], content, turn / 4 % 2);
                    check_round_trip(s);
                    drop(s);
                }
    /* A stored element a block: groups that many ranges share. */
    sample s = make(split(floats[2], ENDOR_BITMAP, 7, 2), 100 * ENDOR_BLOCK + 7, 0, ANYTHING, 1);
    for (size_t b = 0; b < 100; b++) {
        uint16_t element = (uint16_t)(0x3F80 + 100 * b);
        memcpy(s.dense.at + 2 * (b * ENDOR_BLOCK + any() % ENDOR_BLOCK), &element, 2);
    }
    s.tensor.stored = 100;
    encode_anew(&s);
    check_round_trip(s);
    drop(s);
}

/* The survey against the definition. */
static void test_survey(unsigned rounds) {
    for (unsigned round = 0; round < rounds; round++) {
        kind of = floats[any() % LENGTH(floats)];
        uint32_t kept = (uint32_t)(any() % (of.mantissa + 1));
        size_t numel = lengths[any() % LENGTH(lengths)];
        sample s = make(split(of, ENDOR_BITMAP, kept, 1), numel, densities[any() % LENGTH(densities)],
                        (int)(any() % CONTENTS), (int)(any() % 2));
        endor_survey_result expected = {.nnz = s.tensor.stored}, result;
        for (size_t i = 0; i < numel; i++)
            while (element_at(&s, i) & ((UINT64_C(1) << (of.mantissa - expected.kept)) - 1)) expected.kept++;
        for (uint32_t positions = ENDOR_BITMAP; positions <= ENDOR_ALL; positions++) {
            s.tensor.encoding.positions = positions;
            for (unsigned width = 1; width <= 4; width++)
                for (size_t b = 0; b < endor_blocks(numel); b++) {
                    unsigned outside;
                    model_base(&s, b, width, &outside);
                    expected.patches[positions][width - 1] += outside;
                }
        }
        for (size_t i = 0; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            uint64_t nnz;
            memset(&result, 0xA5, sizeof result);
            CHECK(endor_survey(targets[i], &s.tensor.encoding, s.dense.at, s.size, &result) == ENDOR_OK);
            CHECK(result.nnz == expected.nnz && result.kept == expected.kept);
            CHECK(!memcmp(result.patches, expected.patches, sizeof result.patches));
            CHECK(endor_count(targets[i], s.dense.at, s.size, of.itemsize, &nnz) == ENDOR_OK && nnz == expected.nnz);
        }
        drop(s);
    }
}

static endor_encoding any_encoding(void) {
    if (any() % 3 == 0) return raw((size_t)1 << any() % 4);
    kind of = floats[any() % LENGTH(floats)];
    uint32_t widths = of.exponent > 4 ? 4 : of.exponent - 1, kept = any() % 2 ? of.mantissa : (uint32_t)any() % of.mantissa;
    return split(of, any() % 2, kept, 1 + (uint32_t)any() % widths);
}

static sample any_sample(size_t most) {
    size_t numel = any() % 3 ? lengths[any() % LENGTH(lengths)] : any() % most;
    return make(any_encoding(), numel, densities[any() % LENGTH(densities)], (int)(any() % CONTENTS), (int)(any() % 2));
}

/* Something wrong, somewhere: often near an edge, often plausible. */
static void spoil(const sample *s) {
    size_t which = any() % 5;
    if (s->sizes[which] == 0) which = 2;
    size_t size = s->sizes[which], at = any() % 4 == 0 ? size - 1 - any() % 8 : any() % size;
    if (which == 2 && any() % 2) {
        static const int64_t by[] = {1, -1, 4096, INT64_MAX, INT64_MIN, 1 << 20};
        int64_t entry;
        at = at / 8 * 8;
        memcpy(&entry, s->part[2].at + at, 8);
        entry = (int64_t)((uint64_t)entry + (uint64_t)by[any() % LENGTH(by)]);
        memcpy(s->part[2].at + at, &entry, 8);
    } else if (which == 0 && any() % 2) {
        size_t some = s->tensor.encoding.itemsize;
        memset(s->part[0].at + at / some * some, 0, some);
    } else if (which == 4 && s->tensor.patches && any() % 2) {
        s->part[4].at[any() % (3 * s->tensor.patches)] += (uint8_t)(any() % 2 ? 1 : -1);
    } else {
        s->part[which].at[at] ^= (uint8_t)(1u << any() % 8);
    }
}

static void test_spoiled(unsigned rounds) {
    unsigned seen[256] = {0};
    for (unsigned round = 0; round < rounds; round++) {
        sample s = any_sample(20000);
        for (uint64_t faults = 1 + any() % 3; faults; faults--) spoil(&s);
        uint64_t blocks = endor_blocks(s.tensor.numel), first = 0, stop = blocks;
        if (blocks && any() % 2) {
            first = any() % blocks;
            stop = first + 1 + any() % (blocks - first);
        }
        uint64_t offset, other;
        endor_status status = decode(ENDOR_SCALAR, &s, first, stop, 0, &offset);
        CHECK(status < (int)LENGTH(seen));
        seen[status]++;
        memcpy(s.dense.at, s.out.at, s.size);
        for (size_t i = 0; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            CHECK(decode(targets[i], &s, first, stop, (int)(any() % 2), &other) == status);
            CHECK(other == offset);
            if (status == ENDOR_OK) CHECK(!memcmp(s.dense.at, s.out.at, s.size));
            CHECK(validate(targets[i], &s, first, stop, &other) == status);
            CHECK(other == offset);
        }
        drop(s);
    }
    if (rounds >= 10000)
        for (int rule = ENDOR_B3; rule <= ENDOR_B10; rule++) CHECK(seen[rule] > 0);
    if (rounds >= 10000)
        for (int rule = ENDOR_E2; rule <= ENDOR_E8; rule++) CHECK(seen[rule] > 0);
    CHECK(seen[ENDOR_ARGUMENT] == 0);
}

/* One byte of a part changed: the rule that this breaks, and where. */
static void check_fault(const sample *s, int part, size_t at, int to, endor_status status, uint64_t where) {
    uint8_t before = s->part[part].at[at];
    uint64_t blocks = endor_blocks(s->tensor.numel), offset;
    CHECK(at < s->sizes[part] && before != to);
    s->part[part].at[at] = (uint8_t)to;
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        CHECK(decode(targets[i], s, 0, blocks, 0, &offset) == status);
        CHECK(offset == where);
        CHECK(validate(targets[i], s, 0, blocks, &offset) == status);
        CHECK(offset == where);
        CHECK(decode(targets[i], s, 0, blocks, ENDOR_STREAM, &offset) == status);
        CHECK(offset == where);
    }
    s->part[part].at[at] = before;
}

/* Each rule broken by one byte, in a tensor of two full blocks and 100 elements, all 1.5 but for a patch in each block; in the
 * last block with a bitmap 70 are stored. */
static void test_rules(void) {
    for (uint32_t positions = ENDOR_BITMAP; positions <= ENDOR_ALL; positions++) {
        size_t numel = 2 * ENDOR_BLOCK + 100;
        sample s = make(split(floats[2], positions, 7, 2), numel, 0, ANYTHING, 1);
        for (size_t i = 0; i < numel; i++) {
            uint16_t element = i % ENDOR_BLOCK == 5 ? 0x4940 : positions == ENDOR_BITMAP && i >= numel - 30 ? 0 : 0x3FC0;
            memcpy(s.dense.at + 2 * i, &element, 2);
        }
        size_t n = s.tensor.stored = positions == ENDOR_BITMAP ? numel - 30 : numel, group = 80;
        s.tensor.patches = 3;
        encode_anew(&s);
        check_round_trip(s);
        size_t row = positions == ENDOR_BITMAP ? 64 : 0;
        CHECK(s.part[3].at[0] == 124 && s.part[4].at[2] == 0x92);
        if (positions == ENDOR_BITMAP) {
            check_fault(&s, 1, numel / 8, 0x10, ENDOR_B3, numel / 8);
            check_fault(&s, 1, s.sizes[1] - 1, 1, ENDOR_B3, s.sizes[1] - 1);
            check_fault(&s, 2, 0, 1, ENDOR_B4, 0);
            check_fault(&s, 2, 9, 0x30, ENDOR_B5, 8);
            check_fault(&s, 2, 8, 1, ENDOR_B6, 8);
            check_fault(&s, 2, 8 + 7, 0x80, ENDOR_B5, 8);
            check_fault(&s, 1, 0, 0xFE, ENDOR_B6, 8);
            check_fault(&s, 2, 24, 0, ENDOR_B7, 24);
            check_fault(&s, 2, 33, 1, ENDOR_B8, 32);
        }
        check_fault(&s, 2, row, 1, ENDOR_B4, row);
        check_fault(&s, 2, row + 8, 4, ENDOR_B5, row + 8);
        check_fault(&s, 2, row + 16, 0, ENDOR_B5, row + 16);
        check_fault(&s, 2, row + 24, 2, ENDOR_B7, row + 24);
        check_fault(&s, 2, row + 63, 1, ENDOR_B8, row + 56);
        /* The first byte row and the bit rows of the last group, of which n % 64 elements are there; and the groups behind. */
        size_t last = n / 64 * group, some = n % 64;
        check_fault(&s, 0, last + some, 1, ENDOR_E2, last + some);
        check_fault(&s, 0, last + 64 + some / 8, 0xFF, ENDOR_E2, last + 64 + some / 8);
        check_fault(&s, 0, last + 72 + 7, 1, ENDOR_E2, last + 72 + 7);
        check_fault(&s, 0, s.sizes[0] - 1, 0x80, ENDOR_E2, s.sizes[0] - 1);
        check_fault(&s, 3, 1, 253, ENDOR_E3, 1);
        check_fault(&s, 3, 3, 1, ENDOR_E4, 3);
        check_fault(&s, 4, 4, 0x10, ENDOR_E5, 3);
        check_fault(&s, 4, 6, (int)(n % ENDOR_BLOCK), ENDOR_E5, 6);
        check_fault(&s, 2, row + 8, 2, ENDOR_E5, 3);
        check_fault(&s, 4, 5, 125, ENDOR_E6, 3);
        check_fault(&s, 4, 8, 124, ENDOR_E6, 6);
        check_fault(&s, 0, 64, s.part[0].at[64] | 0x20, ENDOR_E7, 0);
        check_fault(&s, 0, 64 * group + 72, s.part[0].at[64 * group + 72] | 0x20, ENDOR_E7, 64 * group);
        check_fault(&s, 4, 9, 1, ENDOR_E8, 9);
        check_fault(&s, 4, s.sizes[4] - 1, 1, ENDOR_E8, s.sizes[4] - 1);
        drop(s);
    }
    /* A block without stored elements has the base 0; stored zeros, with a code and with a patch. */
    sample s = make(split(floats[2], ENDOR_BITMAP, 7, 1), 3 * ENDOR_BLOCK, 0, ANYTHING, 1);
    for (size_t i = 0; i < 200; i++) {
        uint16_t element = i == 100 ? 0x0001 : i == 150 ? 0x4000 : 0x0081;
        memcpy(s.dense.at + 2 * i, &element, 2);
        element = i == 70 ? 0x0001 : 0x4001;
        memcpy(s.dense.at + 2 * (ENDOR_BLOCK + i), &element, 2);
    }
    s.tensor.stored = 400;
    s.tensor.patches = 2;
    encode_anew(&s);
    check_round_trip(s);
    check_fault(&s, 3, 2, 1, ENDOR_E3, 2);
    check_fault(&s, 0, 100 / 64 * 72 + 100 % 64, 0, ENDOR_B10, 100 / 64 * 72);
    check_fault(&s, 0, 270 / 64 * 72 + 270 % 64, 0, ENDOR_B10, 270 / 64 * 72);
    drop(s);
}

/* Counts that lie: as the metadata of a file may. The parts then have the sizes that they imply. */
static void test_lying_counts(void) {
    sample s = make(raw(2), 5000, 50, ANYTHING, 1), t = make(split(floats[2], ENDOR_BITMAP, 7, 2), 5000, 50, ANYTHING, 1);
    uint64_t offset;
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        sample u = s, v = t;
        u.tensor.stored = s.tensor.stored + (s.tensor.stored * 2 % 64 ? 1 : (uint64_t)-1);
        CHECK(decode(targets[i], &u, 0, 2, 0, &offset) == ENDOR_B7);
        u.tensor.stored = s.tensor.stored + 64;
        CHECK(decode(targets[i], &u, 0, 2, 0, &offset) == ENDOR_ARGUMENT);
        v.tensor.patches = t.tensor.patches + (t.tensor.patches % 64 ? 1 : (uint64_t)-1);
        CHECK(decode(targets[i], &v, 0, 2, 0, &offset) == ENDOR_B7);
        v.tensor.patches = t.tensor.patches + 64;
        CHECK(decode(targets[i], &v, 0, 2, 0, &offset) == ENDOR_ARGUMENT);
    }
    drop(s);
    drop(t);
}

/* Whether a fault is of elements that a slice need not look at. */
static int only_of_elements(endor_status status) {
    return status == ENDOR_B10 || status == ENDOR_E7;
}

/* Slices against the dense bytes, on every target; and the same fault as the blocks that they touch. */
static void test_slices(unsigned rounds) {
    for (unsigned round = 0; round < rounds; round++) {
        sample s = any_sample(20000);
        size_t numel = (size_t)s.tensor.numel, size = s.tensor.encoding.itemsize;
        if (numel == 0) {
            drop(s);
            continue;
        }
        endor_parts parts = parts_of(&s);
        uint64_t start = any() % numel, count = 1 + any() % (numel - start), rows = 1, stride = 0, offset, same = 0;
        if (any() % 2) {
            count = 1 + any() % (any() % 2 ? count : 1 + count / 64);
            stride = any() % (any() % 2 ? 300 : numel);
            rows = stride ? 1 + (numel - start - count) / stride : 1 + any() % 3;
        }
        int spoiled = any() % 4 == 0;
        if (spoiled) spoil(&s);
        guarded out = guard((size_t)(rows * count) * size, (int)(any() % 2));
        endor_status first_status = ENDOR_OK;
        for (size_t i = 0; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            endor_runs runs = {start, count, stride, rows};
            endor_status status = endor_slice(
                targets[i], &s.tensor, &parts, &runs, out.at, (size_t)(rows * count) * size, &offset);
            if (targets[i] == ENDOR_SCALAR) {
                first_status = status;
                same = offset;
            }
            CHECK(status == first_status && offset == same);
            if (!spoiled) CHECK(status == ENDOR_OK);
            for (uint64_t r = 0; r < rows && status == ENDOR_OK && !spoiled; r++)
                CHECK(!memcmp(out.at + r * count * size, s.dense.at + (start + r * stride) * size, (size_t)count * size));
            if (spoiled && rows == 1) {
                uint64_t other, first = start / ENDOR_BLOCK, stop = (start + count - 1) / ENDOR_BLOCK + 1;
                endor_status whole = validate(targets[i], &s, first, stop, &other);
                /* What is wrong outside of the slice is of no concern to it, nor does it hide what comes behind. */
                CHECK(status == whole ? other == offset || only_of_elements(whole) : only_of_elements(whole));
            }
        }
        endor_runs runs = {start, count, numel, rows + 1};
        CHECK(endor_slice(ENDOR_AUTO, &s.tensor, &parts, &runs, out.at, (size_t)((rows + 1) * count) * size, &offset) ==
              ENDOR_ARGUMENT);
        runs = (endor_runs){start, numel - start + 1, 0, 1};
        CHECK(endor_slice(ENDOR_AUTO, &s.tensor, &parts, &runs, out.at, (size_t)(numel - start + 1) * size, &offset) ==
              ENDOR_ARGUMENT);
        release(out);
        drop(s);
    }
}

static void test_sizes(void) {
    size_t sizes[5];
    endor_tensor t = {.encoding = raw(4), .numel = 5000, .stored = 2500};
    CHECK(endor_sizes(&t, sizes) == ENDOR_OK);
    CHECK(sizes[0] == 10048 && sizes[1] == 640 && sizes[2] == 64 && sizes[3] == 0 && sizes[4] == 0);
    t = (endor_tensor){split(floats[2], ENDOR_BITMAP, 7, 2), 5000, 2500, 65};
    CHECK(endor_sizes(&t, sizes) == ENDOR_OK);
    CHECK(sizes[0] == 2560 / 64 * 80 && sizes[1] == 640 && sizes[2] == 128 && sizes[3] == 64 && sizes[4] == 384);
    t = (endor_tensor){split(floats[4], ENDOR_ALL, 23, 4), 5000, 5000, 0};
    CHECK(endor_sizes(&t, sizes) == ENDOR_OK);
    CHECK(sizes[0] == 5120 / 64 * 8 * 28 && sizes[1] == 0 && sizes[2] == 64 && sizes[3] == 64 && sizes[4] == 0);
    const endor_tensor good = {split(floats[0], ENDOR_BITMAP, 3, 3), 5000, 2500, 65};
    CHECK(endor_sizes(&good, sizes) == ENDOR_OK);
    endor_tensor bad[] = {good, good, good, good, good, good, good, good, good, good, good, good};
    bad[0].encoding.width = 0;
    bad[1].encoding.width = 4;
    bad[2].encoding.kept = 4;
    bad[3].encoding.exponent = 5;
    bad[4].encoding.itemsize = 2;
    bad[5].encoding.positions = 2;
    bad[6].encoding.values = 2;
    bad[7].encoding.positions = ENDOR_ALL;
    bad[8].patches = 2501;
    bad[9].encoding.values = ENDOR_RAW;
    bad[10].stored = 5001;
    bad[11].numel = UINT64_MAX;
    for (size_t i = 0; i < LENGTH(bad); i++) CHECK(endor_sizes(&bad[i], sizes) == ENDOR_ARGUMENT);
    t = (endor_tensor){.encoding = raw(4), .numel = 5000, .stored = 5000};
    t.encoding.positions = ENDOR_ALL;
    CHECK(endor_sizes(&t, sizes) == ENDOR_ARGUMENT);
}

static void test_arguments(void) {
    endor_encoding encodings[] = {raw(4), split(floats[4], ENDOR_BITMAP, 7, 1), split(floats[4], ENDOR_ALL, 7, 1)};
    for (size_t e = 0; e < LENGTH(encodings); e++) {
        sample s = make(encodings[e], 5000, 50, WEIGHTS, 1);
        endor_parts parts = parts_of(&s);
        endor_room room = room_of(&s);
        uint64_t offset, nnz, n = s.tensor.stored, p = s.tensor.patches;
        endor_survey_result result;
        CHECK(decode(ENDOR_AUTO, &s, 1, 3, 0, &offset) == ENDOR_ARGUMENT);
        CHECK(decode(ENDOR_AUTO, &s, 2, 1, 0, &offset) == ENDOR_ARGUMENT);
        CHECK(decode(ENDOR_TARGETS, &s, 0, 2, 0, &offset) == ENDOR_TARGET);
        CHECK(endor_count(ENDOR_AUTO, s.dense.at, 20000, 3, &nnz) == ENDOR_ARGUMENT);
        CHECK(endor_count(ENDOR_AUTO, s.dense.at, 19999, 4, &nnz) == ENDOR_ARGUMENT);
        CHECK(endor_survey(ENDOR_AUTO, &encodings[0], s.dense.at, 20000, &result) == ENDOR_ARGUMENT);
        CHECK(endor_survey(ENDOR_AUTO, &encodings[1], s.dense.at, 19999, &result) == ENDOR_ARGUMENT);
        CHECK(endor_survey(ENDOR_TARGETS, &encodings[1], s.dense.at, 20000, &result) == ENDOR_TARGET);
        endor_tensor lie = s.tensor;
        lie.numel = UINT64_MAX;
        CHECK(endor_decode(ENDOR_AUTO, &lie, &parts, 0, 0, NULL, 0, 0, &offset) == ENDOR_ARGUMENT);
        endor_range whole = {0, 2, 0, n, 0, p};
        for (size_t i = 0; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            size_t *const sizes[] = {&room.values_size, &room.bitmap_size, &room.index_size, &room.bases_size, &room.patches_size};
            for (size_t k = 0; k < LENGTH(sizes); k++)
                for (size_t wrong = 64; wrong <= 128; wrong += 64) {
                    *sizes[k] += wrong;
                    CHECK(endor_encode(targets[i], &s.tensor, s.dense.at, s.size, &whole, &room) == ENDOR_ARGUMENT);
                    *sizes[k] -= wrong;
                }
            CHECK(endor_encode(targets[i], &s.tensor, s.dense.at, s.size - 4, &whole, &room) == ENDOR_ARGUMENT);
            /* Ranks that are not those of the data: too few, too many, from elsewhere. */
            endor_range wrong[] = {
                {0, 2, 0, n - 1, 0, p}, {0, 1, 0, 1, 0, 0},  {0, 1, 0, n, 0, p},     {1, 2, 2, 1, 0, 0},
                {2, 1, 0, n, 0, p},     {0, 3, 0, n, 0, p},  {0, 2, 1, n, 0, p},     {0, 2, 0, n, 0, p + 1},
                {0, 2, 0, n, 1, p},     {0, 1, 0, n, 0, p + 1}, {1, 2, n, n, p, p},
            };
            memset(s.part[0].at, 0, s.sizes[0]);
            for (size_t k = 0; k < LENGTH(wrong); k++) CHECK(encode_range(targets[i], &s, &wrong[k]) == ENDOR_ARGUMENT);
            if (p > 0) CHECK(encode_range(targets[i], &s, &(endor_range){0, 2, 0, n, 0, p - 1}) == ENDOR_ARGUMENT);
            memset(s.part[0].at, 0, s.sizes[0]);
            CHECK(encode_range(targets[i], &s, &whole) == ENDOR_OK);
            if (e > 0) {
                uint8_t before = s.dense.at[0];
                s.dense.at[0] = 1;
                CHECK(encode_range(targets[i], &s, &whole) == ENDOR_ARGUMENT);
                s.dense.at[0] = before;
            }
        }
        drop(s);
    }
}

int main(int count, char **arguments) {
    unsigned rounds = count > 1 ? (unsigned)strtoul(arguments[1], NULL, 10) : 20000;
    test_sizes();
    test_arguments();
    test_rules();
    test_raw();
    test_split();
    test_survey(rounds / 20);
    test_spoiled(rounds);
    test_slices(rounds / 4);
    test_lying_counts();
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    printf("targets:");
    for (size_t i = 0; i < LENGTH(targets); i++)
        if (endor_has(targets[i])) printf(" %s", names[i]);
    printf(", %u spoiled tensors: all agree\n", rounds);
    return 0;
}
