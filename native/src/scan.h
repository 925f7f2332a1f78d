/* Templates: counting, and looking for a zero. */

TARGET static unsigned EACH(count)(const uint8_t *dense, unsigned count) {
    unsigned i = 0, stored = 0;
    for (; i + 64 <= count; i += 64)
        stored += (unsigned)ONES(EACH(filled_word)(dense + (size_t)i * SIZE));
    if (i < count) {
        uint8_t last[WORD_SIZE] = {0};
        memcpy(last, dense + (size_t)i * SIZE, (size_t)(count - i) * SIZE);
        stored += (unsigned)ONES(EACH(filled_word)(last));
    }
    return stored;
}

TARGET static int EACH(any_zero)(const uint8_t *values, unsigned count) {
    unsigned i = 0;
    uint64_t found = 0;
    for (; i + 64 <= count; i += 64) found |= EACH(zero_word)(values + (size_t)i * SIZE);
    if (i < count) {
        uint8_t last[WORD_SIZE];
        memset(last, 1, sizeof last);
        memcpy(last, values + (size_t)i * SIZE, (size_t)(count - i) * SIZE);
        found |= EACH(zero_word)(last);
    }
    return found != 0;
}
