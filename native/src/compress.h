/* Template: the bitmap and the values of a block. */

TARGET static unsigned EACH(compress)(
    const uint8_t *dense, unsigned count, uint64_t bits[BLOCK_WORDS], uint8_t *values,
    const uint8_t *end) {
    unsigned i = 0, stored = 0;
    /* As long as there is a whole word to be read, and room for all that might be written of it. */
    for (; i + 64 <= count && end - values >= WORD_SIZE; i += 64) {
        bits[i / 64] = EACH(compress_word)(dense + (size_t)i * SIZE, values);
        unsigned ones = (unsigned)ONES(bits[i / 64]);
        values += (size_t)ones * SIZE;
        stored += ones;
    }
    /* Near the end of either, by way of a word's worth of both. */
    for (; i < count; i += 64) {
        uint8_t from[WORD_SIZE] = {0}, to[WORD_SIZE];
        memcpy(from, dense + (size_t)i * SIZE, (size_t)(count - i < 64 ? count - i : 64) * SIZE);
        bits[i / 64] = EACH(compress_word)(from, to);
        unsigned ones = (unsigned)ONES(bits[i / 64]);
        if ((size_t)ones * SIZE > (size_t)(end - values)) return ENDOR_BLOCK + 1;
        memcpy(values, to, (size_t)ones * SIZE);
        values += (size_t)ones * SIZE;
        stored += ones;
    }
    return stored;
}
