/* Template: a block from its bitmap and its values. */

TARGET INLINE void EACH(expand_words)(
    const uint64_t *bits, unsigned count, const uint8_t *values, const uint8_t *end, uint8_t *out,
    int stream) {
    unsigned i = 0;
    /* As long as there is a whole word to be written, and all that might be read for it. */
    for (; i + 64 <= count && end - values >= WORD_SIZE; i += 64)
        values = EACH(expand_word)(bits[i / 64], values, out + (size_t)i * SIZE, stream);
    /* Near the end of either, by way of a word's worth of both. */
    for (; i < count; i += 64) {
        uint8_t from[WORD_SIZE] = {0}, to[WORD_SIZE];
        size_t stored = (size_t)ONES(bits[i / 64]) * SIZE, elements = count - i < 64 ? count - i : 64;
        memcpy(from, values, stored);
        EACH(expand_word)(bits[i / 64], from, to, 0);
        memcpy(out + (size_t)i * SIZE, to, elements * SIZE);
        values += stored;
    }
}

TARGET static void EACH(expand)(
    const uint64_t bits[BLOCK_WORDS], unsigned count, const uint8_t *values, const uint8_t *end,
    uint8_t *out, int stream) {
    /* A loop for each, without the question. */
    if (stream && (uintptr_t)out % WIDEST == 0)
        EACH(expand_words)(bits, count, values, end, out, WIDEST);
#if WIDEST > ENDOR_STREAM_ALIGNMENT
    else if (stream)
        EACH(expand_words)(bits, count, values, end, out, ENDOR_STREAM_ALIGNMENT);
#endif
    else
        EACH(expand_words)(bits, count, values, end, out, 0);
}
