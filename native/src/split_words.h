/* Groups of the targets without registers of bits, by way of bytes: byte k of a word of symbols is a plane of 64 bytes. The
 * target has defined
 *
 *   bytes_of(rows, count, plane)    bit q of byte j of a plane is bit j of row q: from `count` rows of 64 bits, at most 8
 *   rows_of(plane, count, rows)     the other way
 *
 * The rest are loops of 64 rounds, for the compiler to make vectors of.
 */

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

#undef SYMBOL_BYTES
#undef ROWS
