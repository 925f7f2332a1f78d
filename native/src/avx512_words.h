/* Words of the AVX-512 target: as many vectors as an element has bytes. */
#define LANES (64 / SIZE)

TARGET INLINE const uint8_t *EACH(expand_word)(uint64_t word, const uint8_t *values, uint8_t *out, int stream) {
    for (unsigned j = 0; j < 64; j += LANES) {
        EACH(mask) m = (EACH(mask))(word >> j);
        put(out + (size_t)j * SIZE, EACH(expanded)(m, _mm512_loadu_si512(values)), stream);
        values += (size_t)ONES(m) * SIZE;
    }
    return values;
}

TARGET INLINE uint64_t EACH(compress_word)(const uint8_t *dense, uint8_t *values) {
    uint64_t word = 0;
    for (unsigned j = 0; j < 64; j += LANES) {
        __m512i v = _mm512_loadu_si512(dense + (size_t)j * SIZE);
        EACH(mask) m = EACH(filled)(v);
        _mm512_storeu_si512(values, EACH(compressed)(m, v));
        values += (size_t)ONES(m) * SIZE;
        word |= (uint64_t)m << j;
    }
    return word;
}

TARGET INLINE uint64_t EACH(filled_word)(const uint8_t *dense) {
    uint64_t word = 0;
    for (unsigned j = 0; j < 64; j += LANES)
        word |= (uint64_t)EACH(filled)(_mm512_loadu_si512(dense + (size_t)j * SIZE)) << j;
    return word;
}

TARGET INLINE uint64_t EACH(zero_word)(const uint8_t *values) {
    uint64_t found = 0;
    for (unsigned j = 0; j < 64; j += LANES)
        found |= EACH(zeros)(_mm512_loadu_si512(values + (size_t)j * SIZE));
    return found;
}

#undef LANES
