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

#if SIZE <= 4
/* The bits of a row are a mask: what each stands for is added to the base, in its place in the element. */
TARGET INLINE void EACH(join_word)(const fields *fields, unsigned base, const uint8_t *group, uint8_t *elements) {
    unsigned dropped = fields->mantissa - fields->kept, to_sign = 8 * SIZE - 1 - fields->kept;
    unsigned residue_bits = fields->bits - fields->width;
    __m512i mantissas = EACH(all)(((1u << fields->kept) - 1) << dropped), sign = EACH(all)(1u << (8 * SIZE - 1));
    __m512i bottom = EACH(all)(base << fields->mantissa);
    const uint8_t *rows = group + 64 * fields->bytes;
    for (unsigned j = 0; j < 64; j += LANES) {
        __m512i v = bottom;
        for (unsigned q = 0; q < fields->bits; q++) {
            unsigned bit = 8 * fields->bytes + q, place = dropped + bit;
            if (bit == fields->kept) place = 8 * SIZE - 1;
            if (q >= residue_bits) place = fields->mantissa + q - residue_bits;
            EACH(mask) m;
            memcpy(&m, rows + 8 * q + j / 8, sizeof m);
            v = EACH(added)(m, v, EACH(all)(1u << place));
        }
        if (fields->bytes > 0) {
            __m512i residue = EACH(widened)(group + j);
            for (unsigned k = 1; k < fields->bytes; k++)
                residue = _mm512_or_si512(residue, EACH(left)(EACH(widened)(group + 64 * k + j), 8 * k));
            v = and_or(EACH(left)(residue, dropped), mantissas, v);
            if (residue_bits == 0) v = and_or(EACH(left)(residue, to_sign), sign, v);
        }
        _mm512_storeu_si512(elements + (size_t)j * SIZE, v);
    }
}

TARGET INLINE void EACH(split_word)(const fields *fields, const uint8_t *symbols, uint8_t *group) {
    uint8_t *rows = group + 64 * fields->bytes;
    for (unsigned j = 0; j < 64; j += LANES) {
        __m512i v = _mm512_loadu_si512(symbols + (size_t)j * SIZE);
        for (unsigned k = 0; k < fields->bytes; k++) EACH(narrowed)(group + 64 * k + j, EACH(right)(v, 8 * k));
        for (unsigned q = 0; q < fields->bits; q++) {
            EACH(mask) m = EACH(common)(v, EACH(all)(1u << (8 * fields->bytes + q)));
            memcpy(rows + 8 * q + j / 8, &m, sizeof m);
        }
    }
}

TARGET INLINE uint64_t EACH(code_word)(const fields *fields, unsigned base, const uint8_t *elements, uint8_t *symbols) {
    unsigned dropped = fields->mantissa - fields->kept, to_sign = 8 * SIZE - 1 - fields->kept;
    __m512i exponents = EACH(all)((1u << fields->exponent) - 1), window = EACH(all)(1u << fields->width);
    __m512i mantissas = EACH(all)((1u << fields->kept) - 1), sign = EACH(all)(1u << fields->kept);
    __m512i bottom = EACH(all)(base);
    uint64_t outside = 0;
    for (unsigned j = 0; j < 64; j += LANES) {
        __m512i v = _mm512_loadu_si512(elements + (size_t)j * SIZE);
        __m512i code = EACH(less)(_mm512_and_si512(EACH(right)(v, fields->mantissa), exponents), bottom);
        EACH(mask) inside = EACH(below)(code, window);
        __m512i symbol = EACH(left)(EACH(masked)(inside, code), fields->residue);
        symbol = and_or(EACH(right)(v, dropped), mantissas, symbol);
        symbol = and_or(EACH(right)(v, to_sign), sign, symbol);
        _mm512_storeu_si512(symbols + (size_t)j * SIZE, symbol);
        outside |= (uint64_t)(EACH(mask))~inside << j;
    }
    return outside;
}

TARGET INLINE void EACH(exponents_word)(const fields *fields, const uint8_t *elements, uint8_t *bytes) {
    __m512i exponents = EACH(all)((1u << fields->exponent) - 1);
    for (unsigned j = 0; j < 64; j += LANES) {
        __m512i v = _mm512_loadu_si512(elements + (size_t)j * SIZE);
        EACH(narrowed)(bytes + j, _mm512_and_si512(EACH(right)(v, fields->mantissa), exponents));
    }
}
#endif

#undef LANES
