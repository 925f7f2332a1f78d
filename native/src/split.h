/* Template: elements from the groups of split values, and groups from elements. */

/* With the fields as a copy: nothing that is written can change them, and those that are constants are. */
TARGET INLINE void EACH(join_groups)(
    fields fields, const uint8_t *groups, unsigned count, unsigned base, uint8_t *elements) {
    for (; count > 0; count--, groups += fields.group, elements += WORD_SIZE)
        EACH(join_word)(&fields, base, groups, elements);
}

TARGET INLINE void EACH(split_groups)(fields fields, const uint8_t *symbols, unsigned count, uint8_t *groups) {
    for (; count > 0; count--, groups += fields.group, symbols += WORD_SIZE)
        EACH(split_word)(&fields, symbols, groups);
}

/* What is common has a loop for each width: all of the mantissa kept, or as much as BF16 has. */
#if SIZE == 1
#define KEPT_OFTEN 3
#define KEPT_TOO 2
#elif SIZE == 2
#define KEPT_OFTEN 7
#define KEPT_TOO 10
#else
#define KEPT_OFTEN 7
#define KEPT_TOO 23
#endif
#define KNOWN(kept, width) fields_of(8 * SIZE - 1 - mantissa, mantissa, kept, width)
#define EACH_WIDTH(kept, loop, ...)                                                                \
    switch (width) {                                                                               \
    case 1: loop(KNOWN(kept, 1), __VA_ARGS__); break;                                              \
    case 2: loop(KNOWN(kept, 2), __VA_ARGS__); break;                                              \
    case 3: loop(KNOWN(kept, 3), __VA_ARGS__); break;                                              \
    default: loop(KNOWN(kept, 4), __VA_ARGS__);                                                    \
    }
#define EACH_KIND(fields, loop, ...)                                                               \
    do {                                                                                           \
        unsigned mantissa = (fields)->mantissa, width = (fields)->width;                           \
        if ((fields)->kept == KEPT_OFTEN) {                                                        \
            EACH_WIDTH(KEPT_OFTEN, loop, __VA_ARGS__)                                              \
        } else if ((fields)->kept == KEPT_TOO) {                                                   \
            EACH_WIDTH(KEPT_TOO, loop, __VA_ARGS__)                                                \
        } else {                                                                                   \
            loop(*(fields), __VA_ARGS__);                                                          \
        }                                                                                          \
    } while (0)

TARGET static void EACH(join)(
    const fields *fields, const uint8_t *groups, unsigned count, unsigned base, uint8_t *elements) {
    EACH_KIND(fields, EACH(join_groups), groups, count, base, elements);
}

TARGET static void EACH(split)(const fields *fields, const uint8_t *symbols, unsigned count, uint8_t *groups) {
    EACH_KIND(fields, EACH(split_groups), symbols, count, groups);
}

#undef KEPT_OFTEN
#undef KEPT_TOO
#undef KNOWN
#undef EACH_WIDTH
#undef EACH_KIND

TARGET static unsigned EACH(code)(
    const fields *shared, unsigned base, const uint8_t *elements, unsigned count, uint8_t *symbols, uint8_t *patches) {
    fields fields = *shared;
    unsigned found = 0;
    for (unsigned i = 0; i < count; i += 64) {
        uint64_t outside = EACH(code_word)(&fields, base, elements + (size_t)i * SIZE, symbols + (size_t)i * SIZE);
        if (count - i < 64) outside &= (UINT64_C(1) << (count - i)) - 1;
        for (; outside != 0; outside &= outside - 1, found++) {
            unsigned rank = i + (unsigned)__builtin_ctzll(outside);
            ELEMENT(SIZE) element;
            memcpy(&element, elements + (size_t)rank * SIZE, SIZE);
            uint8_t *patch = patches + 3 * (size_t)found;
            patch[0] = (uint8_t)rank;
            patch[1] = (uint8_t)(rank >> 8);
            patch[2] = (uint8_t)((unsigned)element >> fields.mantissa & ((1u << fields.exponent) - 1));
        }
    }
    return found;
}

TARGET static uint32_t EACH(tally)(
    const fields *shared, const uint8_t *elements, unsigned count, uint16_t counts[EXPONENTS]) {
    fields fields = *shared;
    uint8_t exponents[ENDOR_BLOCK];
    unsigned words = (count + 63) / 64;
    uint64_t any = any_bits(elements, words * WORD_SIZE);
    for (unsigned i = 0; i < words * 64; i += 64)
        EACH(exponents_word)(&fields, elements + (size_t)i * SIZE, exponents + i);
    for (unsigned bits = 32; bits >= 8 * SIZE; bits /= 2) any |= any >> bits;
    count_bytes(exponents, words * 64, counts);
    counts[0] = (uint16_t)(counts[0] - (words * 64 - count));
    return (ELEMENT(SIZE))any;
}

TARGET static endor_status EACH(patch)(const fields *fields, patching *p) {
    unsigned shift = fields->mantissa, exponents = 1u << fields->exponent, window = 1u << fields->width;
    unsigned base = p->base, stored = p->stored, from = p->from, some = p->to - from, next = 0, rank = 0, zeros = 0;
    const uint8_t *patch = p->patches;
    uint8_t *elements = p->elements;
    endor_status status = ENDOR_OK;
    uint64_t q = 0, count = p->count;
    for (; q < count; q++, patch += 3) {
        uint16_t low;
        memcpy(&low, patch, sizeof low);
        unsigned exponent = patch[2];
        rank = low;
        ONCE(exponent);
        ONCE(rank);
        status = ENDOR_E5;
        if (rank < next || rank >= stored) break;
        status = ENDOR_E6;
        if (exponent >= exponents || exponent - base < window) break;
        next = rank + 1;
        zeros |= exponent == 0;
        if (rank - from >= some) continue;
        ELEMENT(SIZE) element;
        uint8_t *at = elements + (size_t)(rank - from) * SIZE;
        memcpy(&element, at, SIZE);
        status = ENDOR_E7;
        if (((unsigned)element >> shift & (exponents - 1)) != base) break;
        element = (ELEMENT(SIZE))(element ^ (base ^ exponent) << shift);
        memcpy(at, &element, SIZE);
    }
    p->patch = q;
    p->rank = rank;
    p->zeros = (int)zeros;
    return q < count ? status : ENDOR_OK;
}
