/* Harness: dense bytes that are anything, surveyed, encoded as a whole and in two ranges, with counts that may be wrong. All
 * targets make the same parts, which decode to the same bytes; nothing outside of the buffers is touched.
 */
#include "common.h"

static room rooms[7];

/* Encodes all blocks, or those before `cut` and then the others. */
static endor_status encode(
    endor_target target, const endor_tensor *tensor, const uint8_t *dense, uint64_t cut, const endor_tensor *head,
    const endor_room *room) {
    size_t size = (size_t)tensor->numel * tensor->encoding.itemsize;
    endor_range all = whole(tensor), before = all, behind = all;
    if (cut == 0) return endor_encode(target, tensor, dense, size, &all, room);
    before.stop = behind.first = cut;
    before.high = behind.low = head->stored;
    before.patch_high = behind.patch_low = head->patches;
    endor_status status = endor_encode(target, tensor, dense, size, &before, room);
    return status == ENDOR_OK ? endor_encode(target, tensor, dense, size, &behind, room) : status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t expected[5][8 * MOST + 64];
    input in = {data, data + size};
    endor_encoding encoding = take_encoding(&in);
    unsigned choices = (unsigned)take(&in, 1);
    size_t itemsize = encoding.itemsize, numel = take_numel(&in, choices >> 4 & 1), sizes[5];
    int at_the_end = choices & 1, pattern = choices >> 1 & 1, dropping = choices >> 2 & 1;
    uint64_t nb = endor_blocks(numel), cut = take(&in, 1) % (nb + 1), off = take(&in, 2);
    size_t dense_size = numel * itemsize, left = (size_t)(in.end - in.at);
    uint8_t *dense = place(&rooms[0], dense_size, at_the_end), *at[5];
    if (pattern && left > 0) {
        for (size_t i = 0; i < dense_size; i++) dense[i] = in.at[i % left];
    } else {
        take_to(&in, dense, dense_size);
    }
    if (!dropping) drop_bits(&encoding, dense, numel);
    endor_tensor tensor = counted(ENDOR_SCALAR, encoding, dense, numel);
    endor_survey_result survey = {0}, other;
    int fits = 1;
    if (encoding.values == ENDOR_SPLIT) {
        CHECK(endor_survey(ENDOR_SCALAR, &encoding, dense, dense_size, &survey) == ENDOR_OK);
        fits = survey.kept <= encoding.kept;
        CHECK(fits || dropping);
    }
    CHECK(endor_sizes(&tensor, sizes) == ENDOR_OK);
    for (int k = 0; k < 5; k++) at[k] = place(&rooms[1 + k], sizes[k], at_the_end);
    endor_room room = as_room(at, sizes);
    endor_parts parts = as_parts(at, sizes);
    for (size_t i = 0; i < LENGTH(targets); i++) {
        if (!endor_has(targets[i])) continue;
        uint64_t offset;
        size_t before = (size_t)(cut * ENDOR_BLOCK < numel ? cut * ENDOR_BLOCK : numel);
        endor_tensor again = counted(targets[i], encoding, dense, numel);
        endor_tensor head = counted(targets[i], encoding, dense, before);
        CHECK(again.stored == tensor.stored && again.patches == tensor.patches && head.stored <= tensor.stored);
        if (encoding.values == ENDOR_SPLIT) {
            CHECK(endor_survey(targets[i], &encoding, dense, dense_size, &other) == ENDOR_OK);
            CHECK(other.kept == survey.kept && memcmp(other.patches, survey.patches, sizeof other.patches) == 0);
        }
        for (int cuts = 0; cuts < 2; cuts++) {
            for (int k = 0; k < 5; k++)
                memset(at[k], k == 0 && encoding.values == ENDOR_SPLIT ? 0 : 0xA5, sizes[k]);
            endor_status status = encode(targets[i], &tensor, dense, cuts ? cut : 0, &head, &room);
            CHECK(status == (fits ? ENDOR_OK : ENDOR_ARGUMENT));
            if (!fits) continue;
            for (int k = 0; k < 5; k++) {
                if (targets[i] == ENDOR_SCALAR && !cuts) memcpy(expected[k], at[k], sizes[k]);
                CHECK(memcmp(at[k], expected[k], sizes[k]) == 0);
            }
        }
        if (!fits) continue;
        uint8_t *out = place(&rooms[6], dense_size, at_the_end);
        memset(out, 0x5A, dense_size);
        CHECK(endor_decode(targets[i], &tensor, &parts, 0, nb, out, dense_size, ENDOR_STREAM, &offset) == ENDOR_OK);
        CHECK(memcmp(out, dense, dense_size) == 0);
        /* Counts that are not those of the data, and buffers that would do for them: refused, and not written past. */
        endor_tensor wrong = tensor;
        if (encoding.positions == ENDOR_BITMAP && choices >> 3 & 1)
            wrong.stored = off % (tensor.stored + 1);
        else
            wrong.patches = off % (tensor.patches + 1);
        if (wrong.patches > wrong.stored) wrong.patches = wrong.stored;
        if (wrong.stored == tensor.stored && wrong.patches == tensor.patches) continue;
        size_t less[5];
        uint8_t *to[5];
        CHECK(endor_sizes(&wrong, less) == ENDOR_OK);
        for (int k = 0; k < 5; k++) to[k] = memset(place(&rooms[1 + k], less[k], 1), 0, less[k]);
        endor_room small = as_room(to, less);
        CHECK(encode(targets[i], &wrong, dense, 0, NULL, &small) == ENDOR_ARGUMENT);
    }
    return 0;
}
