/* Harness: dense bytes that are anything, encoded as a whole and in two ranges, with ranks that may be wrong. All targets
 * make the same parts, which decode to the same bytes; nothing outside of the buffers is touched.
 */
#include "common.h"

static room rooms[6];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t expected[3][8 * MOST + 64];
    input in = {data, data + size};
    unsigned choices = (unsigned)take(&in, 1);
    size_t itemsize = (size_t)1 << choices % 4, numel = (size_t)take(&in, 2) % (MOST + 1);
    int at_the_end = choices >> 2 & 1, pattern = choices >> 3 & 1;
    uint64_t nb = endor_blocks(numel), cut = take(&in, 1) % (nb + 1), off = take(&in, 2), nnz;
    size_t dense_size = numel * itemsize;
    uint8_t *dense = place(&rooms[0], dense_size, at_the_end);
    if (pattern && size > 6) {
        for (size_t i = 0; i < dense_size; i++) dense[i] = data[6 + i % (size - 6)];
    } else {
        take_to(&in, dense, dense_size);
    }
    CHECK(endor_count(ENDOR_SCALAR, dense, dense_size, itemsize, &nnz) == ENDOR_OK);
    endor_parts parts = parts_of(itemsize, numel, nnz);
    uint8_t *part[3] = {
        place(&rooms[1], parts.values_size, at_the_end), place(&rooms[2], parts.bitmap_size, at_the_end),
        place(&rooms[3], parts.index_size, at_the_end)};
    const size_t sizes[3] = {parts.values_size, parts.bitmap_size, parts.index_size};
    parts.values = part[0];
    parts.bitmap = part[1];
    parts.index = part[2];
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        uint64_t low, counted, offset;
        size_t head = (size_t)(cut * ENDOR_BLOCK < numel ? cut * ENDOR_BLOCK : numel) * itemsize;
        CHECK(endor_count(targets[i], dense, dense_size, itemsize, &counted) == ENDOR_OK && counted == nnz);
        CHECK(endor_count(targets[i], dense, head, itemsize, &low) == ENDOR_OK && low <= nnz);
        for (int cuts = 0; cuts < 2; cuts++) {
            for (int k = 0; k < 3; k++) memset(part[k], 0xA5, sizes[k]);
            uint64_t edges[][2] = {{cuts ? cut : nb, cuts ? low : nnz}, {nb, nnz}}, from = 0, rank = 0;
            for (int k = 0; k <= cuts; from = edges[k][0], rank = edges[k][1], k++)
                CHECK(endor_encode(
                          targets[i], dense, dense_size, itemsize, from, edges[k][0], rank, edges[k][1], part[0],
                          sizes[0], part[1], sizes[1], part[2], sizes[2]) == ENDOR_OK);
            for (int k = 0; k < 3; k++) {
                if (targets[i] == ENDOR_SCALAR && !cuts) memcpy(expected[k], part[k], sizes[k]);
                CHECK(memcmp(part[k], expected[k], sizes[k]) == 0);
            }
        }
        uint8_t *out = place(&rooms[4], dense_size, at_the_end);
        memset(out, 0x5A, dense_size);
        CHECK(endor_decode(
                  targets[i], &parts, itemsize, numel, nnz, 0, nb, out, dense_size, ENDOR_STREAM, &offset) ==
              ENDOR_OK);
        CHECK(memcmp(out, dense, dense_size) == 0);
        /* Ranks that are not those of the data, and a buffer that would do for them: refused, and not written past. */
        uint64_t wrong = off % (low + 2);
        size_t room = roundup((size_t)wrong * itemsize, 64);
        CHECK(wrong == low || cut == 0 || cut == nb ||
              endor_encode(
                  targets[i], dense, dense_size, itemsize, 0, cut, 0, wrong, place(&rooms[5], room, 1), room, part[1],
                  sizes[1], part[2], sizes[2]) == ENDOR_ARGUMENT);
    }
    return 0;
}
