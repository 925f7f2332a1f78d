/* Words of the scalar target: 8 elements at a time or one by one. */

INLINE const uint8_t *EACH(expand_word)(uint64_t word, const uint8_t *values, uint8_t *out, int stream) {
    uint64_t ones = ones_up_to(word), before = ones << 8;
    (void)stream;
    for (unsigned j = 0; j < 64; j += 8) {
        const uint8_t *places = endor_expanding.of_1[word >> j & 0xFF];
        ELEMENT(SIZE) from[9], to[8];
        memcpy(from, values + (size_t)(before >> j & 0xFF) * SIZE, 8 * SIZE);
        from[ENDOR_NONE & 15] = 0;
        /* Looked up without a branch: those of half-empty bitmaps cannot be predicted. */
        for (unsigned i = 0; i < 8; i++) to[i] = from[places[i] & 15];
        memcpy(out + (size_t)j * SIZE, to, sizeof to);
    }
    return values + (size_t)(ones >> 56) * SIZE;
}

INLINE uint64_t EACH(compress_word)(const uint8_t *dense, uint8_t *values) {
    uint64_t word = 0;
    for (unsigned i = 0; i < 64; i++) {
        ELEMENT(SIZE) element;
        memcpy(&element, dense + (size_t)i * SIZE, SIZE);
        /* Written in any case, and overwritten if it was zero: no branch to mispredict. */
        memcpy(values, &element, SIZE);
        values += element != 0 ? SIZE : 0;
        word |= (uint64_t)(element != 0) << i;
    }
    return word;
}

INLINE uint64_t EACH(filled_word)(const uint8_t *dense) {
    uint64_t word = 0;
    for (unsigned i = 0; i < 64; i++) {
        ELEMENT(SIZE) element;
        memcpy(&element, dense + (size_t)i * SIZE, SIZE);
        word |= (uint64_t)(element != 0) << i;
    }
    return word;
}

INLINE uint64_t EACH(zero_word)(const uint8_t *values) {
    unsigned found = 0;
    for (unsigned i = 0; i < 64; i++) {
        ELEMENT(SIZE) element;
        memcpy(&element, values + (size_t)i * SIZE, SIZE);
        found |= element == 0;
    }
    return found;
}

#if SIZE <= 4
/* Bytes that the symbols have, and how many bit rows make byte k of them. Byte k begins 64 k bytes into a group in any case. */
#define SYMBOL_BYTES(fields) ((fields)->bytes + ((fields)->bits + 7) / 8)
#define ROWS(fields, k) ((fields)->bits < 8 * ((k) + 1 - (fields)->bytes) ? (fields)->bits % 8 : 8)

TARGET INLINE void EACH(join_word)(const fields *fields, unsigned base, const uint8_t *group, uint8_t *elements) {
    ELEMENT(SIZE) word[64] = {0};
    for (unsigned k = 0; k < SYMBOL_BYTES(fields); k++) {
        uint8_t plane[64];
        if (k < fields->bytes)
            memcpy(plane, group + 64 * k, sizeof plane);
        else
            bytes_of(group + 64 * k, ROWS(fields, k), plane);
        for (unsigned i = 0; i < 64; i++) word[i] = (ELEMENT(SIZE))(word[i] | (ELEMENT(SIZE))plane[i] << 8 * k);
    }
    unsigned dropped = fields->mantissa - fields->kept, to_sign = 8 * SIZE - 1 - fields->kept;
    ELEMENT(SIZE) mantissas = (ELEMENT(SIZE))((1u << fields->kept) - 1), bottom = (ELEMENT(SIZE))(base << fields->mantissa);
    ELEMENT(SIZE) sign = (ELEMENT(SIZE))(1u << fields->kept);
    for (unsigned i = 0; i < 64; i++) {
        ELEMENT(SIZE) symbol = word[i], code = (ELEMENT(SIZE))(symbol >> fields->residue);
        ELEMENT(SIZE) residue = (ELEMENT(SIZE))((symbol & mantissas) << dropped | (symbol & sign) << to_sign);
        word[i] = (ELEMENT(SIZE))(residue | (ELEMENT(SIZE))((ELEMENT(SIZE))(code << fields->mantissa) + bottom));
    }
    memcpy(elements, word, sizeof word);
}

TARGET INLINE void EACH(split_word)(const fields *fields, const uint8_t *symbols, uint8_t *group) {
    ELEMENT(SIZE) word[64];
    memcpy(word, symbols, sizeof word);
    for (unsigned k = 0; k < SYMBOL_BYTES(fields); k++) {
        uint8_t plane[64];
        for (unsigned i = 0; i < 64; i++) plane[i] = (uint8_t)(word[i] >> 8 * k);
        if (k < fields->bytes)
            memcpy(group + 64 * k, plane, sizeof plane);
        else
            rows_of(plane, ROWS(fields, k), group + 64 * k);
    }
}

TARGET INLINE uint64_t EACH(code_word)(const fields *fields, unsigned base, const uint8_t *elements, uint8_t *symbols) {
    ELEMENT(SIZE) word[64];
    uint8_t outside[64];
    memcpy(word, elements, sizeof word);
    unsigned dropped = fields->mantissa - fields->kept, to_sign = 8 * SIZE - 1 - fields->kept;
    ELEMENT(SIZE) exponents = (ELEMENT(SIZE))((1u << fields->exponent) - 1), window = (ELEMENT(SIZE))(1u << fields->width);
    ELEMENT(SIZE) mantissas = (ELEMENT(SIZE))((1u << fields->kept) - 1), sign = (ELEMENT(SIZE))(1u << fields->kept);
    ELEMENT(SIZE) bottom = (ELEMENT(SIZE))base;
    for (unsigned i = 0; i < 64; i++) {
        ELEMENT(SIZE) element = word[i];
        ELEMENT(SIZE) code = (ELEMENT(SIZE))((ELEMENT(SIZE))(element >> fields->mantissa & exponents) - bottom);
        outside[i] = code >= window;
        code = code >= window ? 0 : code;
        word[i] = (ELEMENT(SIZE))((element >> dropped & mantissas) | (element >> to_sign & sign) | code << fields->residue);
    }
    memcpy(symbols, word, sizeof word);
    return filled_word_1(outside);
}

INLINE void EACH(exponents_word)(const fields *fields, const uint8_t *elements, uint8_t *bytes) {
    ELEMENT(SIZE) word[64];
    memcpy(word, elements, sizeof word);
    unsigned exponents = (1u << fields->exponent) - 1;
    for (unsigned i = 0; i < 64; i++) bytes[i] = (uint8_t)((unsigned)word[i] >> fields->mantissa & exponents);
}

#undef SYMBOL_BYTES
#undef ROWS
#endif
