/* All targets against the scalar one, on good parts and bad, every buffer between pages that must not be touched.
 *
 * `test_codec [rounds]`: prints what it has done and exits with 0, or says what differs and aborts. The scalar target
 * itself is held against the Python reference by the tests of the package.
 */
#include "check.h"

static uint64_t state = 88172645463325252u;

static uint64_t any(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

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

typedef struct tensor {
    size_t itemsize, numel;
    uint64_t nnz;
    guarded dense, values, bitmap, index, out;
    endor_parts parts;
} tensor;

static tensor make(size_t itemsize, size_t numel, unsigned density, int at_the_end) {
    tensor t = {.itemsize = itemsize, .numel = numel};
    size_t size = itemsize * numel;
    t.dense = guard(size, at_the_end);
    for (size_t i = 0; i < numel; i++) {
        uint64_t word = any() % 100 < density ? any() : 0;
        memcpy(t.dense.at + i * itemsize, &word, itemsize);
    }
    CHECK(endor_count(ENDOR_SCALAR, t.dense.at, size, itemsize, &t.nnz) == ENDOR_OK);
    t.parts = parts_of(itemsize, numel, t.nnz);
    t.values = guard(t.parts.values_size, at_the_end);
    t.bitmap = guard(t.parts.bitmap_size, at_the_end);
    t.index = guard(t.parts.index_size, at_the_end);
    t.out = guard(size, at_the_end);
    t.parts.values = t.values.at;
    t.parts.bitmap = t.bitmap.at;
    t.parts.index = t.index.at;
    return t;
}

static void drop(tensor t) {
    release(t.dense);
    release(t.values);
    release(t.bitmap);
    release(t.index);
    release(t.out);
}

static endor_status encode_range(
    endor_target target, tensor t, uint64_t first, uint64_t stop, uint64_t low, uint64_t high) {
    return endor_encode(
        target, t.dense.at, t.itemsize * t.numel, t.itemsize, first, stop, low, high, t.values.at,
        t.parts.values_size, t.bitmap.at, t.parts.bitmap_size, t.index.at, t.parts.index_size);
}

static endor_status encode(endor_target target, tensor t) {
    return encode_range(target, t, 0, endor_blocks(t.numel), 0, t.nnz);
}

/* Block by block, the last one first: no range may touch what belongs to another. */
static void encode_blocks(endor_target target, tensor t) {
    uint64_t nb = endor_blocks(t.numel), high = t.nnz;
    for (uint64_t b = nb; b-- > 0;) {
        size_t at = (size_t)b * ENDOR_BLOCK, count = t.numel - at < ENDOR_BLOCK ? t.numel - at : ENDOR_BLOCK;
        uint64_t stored;
        CHECK(endor_count(target, t.dense.at + at * t.itemsize, count * t.itemsize, t.itemsize, &stored) ==
              ENDOR_OK);
        CHECK(encode_range(target, t, b, b + 1, high - stored, high) == ENDOR_OK);
        high -= stored;
    }
    CHECK(high == 0);
}

static endor_status decode(
    endor_target target, tensor t, uint64_t first, uint64_t stop, int flags, uint64_t *offset) {
    uint64_t end = stop * ENDOR_BLOCK < t.numel ? stop * ENDOR_BLOCK : t.numel;
    size_t size = first < stop ? (size_t)(end - first * ENDOR_BLOCK) * t.itemsize : 0;
    return endor_decode(
        target, &t.parts, t.itemsize, t.numel, t.nnz, first, stop,
        t.out.at + (first < stop ? first * ENDOR_BLOCK * t.itemsize : 0), size, flags, offset);
}

static const size_t lengths[] = {0,   1,   7,    8,    9,    15,   16,   17,   63,   64,    65,   127,
                                 129, 511, 513,  1000, 4095, 4096, 4097, 4160, 8191, 8192, 8193, 12345};
static const unsigned densities[] = {0, 3, 50, 97, 100};

static void test_round_trip(void) {
    for (size_t s = 1; s <= 8; s *= 2)
        for (size_t n = 0; n < LENGTH(lengths); n++)
            for (size_t d = 0; d < LENGTH(densities); d++)
                for (int at_the_end = 0; at_the_end < 2; at_the_end++) {
                    tensor t = make(s, lengths[n], densities[d], at_the_end);
                    CHECK(encode(ENDOR_SCALAR, t) == ENDOR_OK);
                    guarded scalar[] = {t.values, t.bitmap, t.index};
                    for (size_t i = 0; i < LENGTH(targets); i++) {
                        if (!endor_has(targets[i])) continue;
                        for (int whole = 0; whole < 2; whole++) {
                            t.values = guard(t.parts.values_size, at_the_end);
                            t.bitmap = guard(t.parts.bitmap_size, at_the_end);
                            t.index = guard(t.parts.index_size, at_the_end);
                            if (whole || lengths[n] == 0)
                                CHECK(encode(targets[i], t) == ENDOR_OK);
                            else
                                encode_blocks(targets[i], t);
                            CHECK(!memcmp(t.values.at, scalar[0].at, t.parts.values_size));
                            CHECK(!memcmp(t.bitmap.at, scalar[1].at, t.parts.bitmap_size));
                            CHECK(!memcmp(t.index.at, scalar[2].at, t.parts.index_size));
                            release(t.values);
                            release(t.bitmap);
                            release(t.index);
                        }
                    }
                    t.values = scalar[0];
                    t.bitmap = scalar[1];
                    t.index = scalar[2];
                    uint64_t nb = endor_blocks(lengths[n]), offset, nnz;
                    for (size_t i = 0; i < LENGTH(targets); i++) {
                        if (!endor_has(targets[i])) continue;
                        size_t size = s * lengths[n];
                        CHECK(endor_count(targets[i], t.dense.at, size, s, &nnz) == ENDOR_OK);
                        CHECK(nnz == t.nnz);
                        for (int flags = 0; flags <= ENDOR_STREAM; flags++) {
                            memset(t.out.at, 0x5A, size);
                            CHECK(decode(targets[i], t, 0, nb, flags, &offset) == ENDOR_OK);
                            CHECK(!memcmp(t.out.at, t.dense.at, size));
                            memset(t.out.at, 0x5A, size);
                            for (uint64_t b = 0; b < nb; b++)
                                CHECK(decode(targets[i], t, b, b + 1, flags, &offset) == ENDOR_OK);
                            CHECK(!memcmp(t.out.at, t.dense.at, size));
                        }
                    }
                    drop(t);
                }
}

/* Something wrong, somewhere: often near an edge, often plausible. */
static void spoil(tensor t) {
    guarded part[] = {t.values, t.bitmap, t.index};
    size_t sizes[] = {t.parts.values_size, t.parts.bitmap_size, t.parts.index_size};
    size_t which = any() % 3;
    if (sizes[which] == 0) which = 2;
    size_t at = any() % 4 == 0 ? sizes[which] - 1 - any() % 8 : any() % sizes[which];
    if (which == 2 && any() % 2) {
        int64_t entry;
        at = at / 8 * 8;
        memcpy(&entry, t.index.at + at, 8);
        static const int64_t by[] = {1, -1, 4096, INT64_MAX, INT64_MIN, 1 << 20};
        entry = (int64_t)((uint64_t)entry + (uint64_t)by[any() % LENGTH(by)]);
        memcpy(t.index.at + at, &entry, 8);
    } else if (which == 0 && any() % 2) {
        at = at / t.itemsize * t.itemsize;
        memset(t.values.at + at, 0, t.itemsize);
    } else {
        part[which].at[at] ^= (uint8_t)(1u << any() % 8);
    }
}

static void test_spoiled(unsigned rounds) {
    unsigned seen[111] = {0};
    for (unsigned round = 0; round < rounds; round++) {
        size_t numel = any() % 3 ? lengths[any() % LENGTH(lengths)] : any() % 20000;
        tensor t = make((size_t)1 << any() % 4, numel, densities[any() % LENGTH(densities)], any() % 2);
        CHECK(encode(ENDOR_SCALAR, t) == ENDOR_OK);
        for (uint64_t faults = 1 + any() % 3; faults; faults--) spoil(t);
        uint64_t nb = endor_blocks(numel), first = 0, stop = nb;
        if (nb && any() % 2) {
            first = any() % nb;
            stop = first + 1 + any() % (nb - first);
        }
        uint64_t offset, other;
        endor_status status = decode(ENDOR_SCALAR, t, first, stop, 0, &offset);
        CHECK(status < (int)LENGTH(seen));
        seen[status]++;
        for (size_t i = 1; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            CHECK(decode(targets[i], t, first, stop, (int)(any() % 2), &other) == status);
            CHECK(other == offset);
        }
        for (size_t i = 0; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            CHECK(endor_validate(
                      targets[i], &t.parts, t.itemsize, numel, t.nnz, first, stop, &other) == status);
            CHECK(other == offset);
        }
        drop(t);
    }
    for (int rule = ENDOR_B3; rule <= ENDOR_B10; rule++) CHECK(seen[rule] > 0);
    CHECK(seen[ENDOR_ARGUMENT] == 0);
}

/* nnz that lies: as the metadata of a file may. The parts then have the sizes that it implies. */
static void test_lying_nnz(void) {
    tensor t = make(2, 5000, 50, 1);
    CHECK(encode(ENDOR_SCALAR, t) == ENDOR_OK);
    uint64_t nnz = t.nnz, offset;
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        t.nnz = nnz + (nnz * 2 % 64 ? 1 : (uint64_t)-1);
        CHECK(decode(targets[i], t, 0, 2, 0, &offset) == ENDOR_B7);
        t.nnz = nnz + 64;
        CHECK(decode(targets[i], t, 0, 2, 0, &offset) == ENDOR_ARGUMENT);
    }
    t.nnz = nnz;
    drop(t);
}

/* Slices against the dense bytes, on every target; and the same fault as the blocks that they touch. */
static void test_slices(unsigned rounds) {
    for (unsigned round = 0; round < rounds; round++) {
        size_t numel = lengths[1 + any() % (LENGTH(lengths) - 1)], s = (size_t)1 << any() % 4;
        tensor t = make(s, numel, densities[any() % LENGTH(densities)], any() % 2);
        CHECK(encode(ENDOR_SCALAR, t) == ENDOR_OK);
        uint64_t start = any() % numel, count = 1 + any() % (numel - start), rows = 1, stride = 0, offset;
        if (any() % 2) {
            count = 1 + any() % (any() % 2 ? count : 1 + count / 64);
            stride = any() % (any() % 2 ? 300 : numel);
            rows = stride ? 1 + (numel - start - count) / stride : 1 + any() % 3;
        }
        int spoiled = any() % 4 == 0;
        if (spoiled) spoil(t);
        guarded out = guard((size_t)(rows * count) * s, any() % 2);
        for (size_t i = 0; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            endor_status status = endor_slice(
                targets[i], &t.parts, s, numel, t.nnz, start, count, stride, rows, out.at,
                (size_t)(rows * count) * s, &offset);
            if (!spoiled) CHECK(status == ENDOR_OK);
            for (uint64_t r = 0; r < rows && status == ENDOR_OK && !spoiled; r++)
                CHECK(!memcmp(out.at + r * count * s, t.dense.at + (start + r * stride) * s, (size_t)count * s));
            if (spoiled && rows == 1) {
                uint64_t other;
                uint64_t first = start / ENDOR_BLOCK, stop = (start + count - 1) / ENDOR_BLOCK + 1;
                endor_status whole =
                    endor_validate(targets[i], &t.parts, s, numel, t.nnz, first, stop, &other);
                /* A zero outside of the slice is of no concern to it, nor does it hide what comes behind. */
                CHECK(status == whole ? other == offset || whole == ENDOR_B10 : whole == ENDOR_B10);
            }
        }
        CHECK(endor_slice(ENDOR_AUTO, &t.parts, s, numel, t.nnz, start, count, numel, rows + 1, out.at,
                          (size_t)((rows + 1) * count) * s, &offset) == ENDOR_ARGUMENT);
        CHECK(endor_slice(ENDOR_AUTO, &t.parts, s, numel, t.nnz, start, numel - start + 1, 0, 1, out.at,
                          (size_t)(numel - start + 1) * s, &offset) == ENDOR_ARGUMENT);
        release(out);
        drop(t);
    }
}

static void test_arguments(void) {
    tensor t = make(4, 5000, 50, 1);
    uint64_t offset, nnz;
    CHECK(encode(ENDOR_AUTO, t) == ENDOR_OK);
    CHECK(decode(ENDOR_AUTO, t, 1, 3, 0, &offset) == ENDOR_ARGUMENT);
    CHECK(decode(ENDOR_AUTO, t, 2, 1, 0, &offset) == ENDOR_ARGUMENT);
    CHECK(decode(ENDOR_TARGETS, t, 0, 2, 0, &offset) == ENDOR_TARGET);
    CHECK(endor_count(ENDOR_AUTO, t.dense.at, 20000, 3, &nnz) == ENDOR_ARGUMENT);
    CHECK(endor_count(ENDOR_AUTO, t.dense.at, 19999, 4, &nnz) == ENDOR_ARGUMENT);
    CHECK(endor_decode(ENDOR_AUTO, &t.parts, 4, UINT64_MAX, t.nnz, 0, 0, NULL, 0, 0, &offset) == ENDOR_ARGUMENT);
    CHECK(endor_decode(ENDOR_AUTO, &t.parts, 4, 5000, 5001, 0, 0, NULL, 0, 0, &offset) == ENDOR_ARGUMENT);
    for (int wrong = -64; wrong <= 64; wrong += 128)
        for (size_t i = 0; i < LENGTH(targets); i++) {
            if (!endor_has(targets[i])) continue;
            tensor u = t;
            u.parts.values_size = t.parts.values_size + (size_t)wrong;
            u.values = guard(u.parts.values_size, 1);
            CHECK(encode(targets[i], u) == ENDOR_ARGUMENT);
            release(u.values);
        }
    /* Ranks that are not those of the data: too few, too many, from elsewhere. */
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        CHECK(encode_range(targets[i], t, 0, 2, 0, t.nnz - 1) == ENDOR_ARGUMENT);
        CHECK(encode_range(targets[i], t, 0, 1, 0, 1) == ENDOR_ARGUMENT);
        CHECK(encode_range(targets[i], t, 0, 1, 0, t.nnz) == ENDOR_ARGUMENT);
        CHECK(encode_range(targets[i], t, 1, 2, 2, 1) == ENDOR_ARGUMENT);
        CHECK(encode_range(targets[i], t, 2, 1, 0, t.nnz) == ENDOR_ARGUMENT);
        CHECK(encode_range(targets[i], t, 0, 3, 0, t.nnz) == ENDOR_ARGUMENT);
    }
    drop(t);
}

int main(int count, char **arguments) {
    unsigned rounds = count > 1 ? (unsigned)strtoul(arguments[1], NULL, 10) : 20000;
    test_round_trip();
    test_spoiled(rounds);
    test_slices(rounds / 4);
    test_lying_nnz();
    test_arguments();
    static const char *const names[] = {"scalar", "avx2", "avx512", "neon"};
    printf("targets:");
    for (size_t i = 0; i < LENGTH(targets); i++)
        if (endor_has(targets[i])) printf(" %s", names[i]);
    printf(", %u spoiled tensors: all agree\n", rounds);
    return 0;
}
