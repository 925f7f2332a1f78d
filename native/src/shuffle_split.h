/* Groups of the targets with a shuffle of 16 bytes, by way of planes: plane k is byte k of the symbols of as many elements as a
 * wide vector has bytes. The target has defined, of wide vectors and where it says _n for lanes of n = 1, 2, 4 bytes,
 *
 *   put_wide(out, v), both(a, b), either(a, b)
 *   all_n(number), plus_n(a, b), minus_n(a, b), left_n(v, by), right_n(v, by)
 *                          left_1 and right_1 may shift bits from one byte of a pair to the other
 *   at_most_n(a, b)        all ones where a <= b, without signs
 *   zip_n(v)               in place, the lanes of v[0] and v[1] by turns; n is 1 or 2
 *   unzip_n(v)             the other way
 *   ones_at(row)           a byte for each bit from `row` on: all ones, or 0
 *   bits_at(v, q)          bit q of each byte
 */
#define WIDE ((unsigned)sizeof(wide))

/* Bytes that the symbols have, and how many bit rows make byte k of them. Byte k begins 64 k bytes into a group in any case. */
#define SYMBOL_BYTES(fields) ((fields)->bytes + ((fields)->bits + 7) / 8)
#define ROWS(fields, k) ((fields)->bits < 8 * ((k) + 1 - (fields)->bytes) ? (fields)->bits % 8 : 8)

#if SIZE == 4
TARGET INLINE void change_places(wide *a, wide *b) {
    wide other = *a;
    *a = *b;
    *b = other;
}
#endif

/* The planes of some elements to vectors of these, in place. */
TARGET INLINE void EACH(elements_of_planes)(wide *v) {
#if SIZE == 2
    zip_1(v);
#elif SIZE == 4
    zip_1(v);
    zip_1(v + 2);
    change_places(&v[1], &v[2]);
    zip_2(v);
    zip_2(v + 2);
#else
    (void)v;
#endif
}

TARGET INLINE void EACH(planes_of_elements)(wide *v) {
#if SIZE == 2
    unzip_1(v);
#elif SIZE == 4
    unzip_2(v);
    unzip_2(v + 2);
    change_places(&v[1], &v[2]);
    unzip_1(v);
    unzip_1(v + 2);
#else
    (void)v;
#endif
}

TARGET INLINE void EACH(join_word)(const fields *fields, unsigned base, const uint8_t *group, uint8_t *elements) {
    unsigned dropped = fields->mantissa - fields->kept, to_sign = 8 * SIZE - 1 - fields->kept;
    wide mantissas = EACH(all)(((1u << fields->kept) - 1) << dropped), sign = EACH(all)(1u << (8 * SIZE - 1));
    wide codes = EACH(all)(((1u << fields->width) - 1) << fields->mantissa), bottom = EACH(all)(base << fields->mantissa);
    for (unsigned j = 0; j < 64; j += WIDE) {
        wide v[SIZE];
        for (unsigned k = 0; k < SIZE; k++) {
            v[k] = all_1(0);
            if (k < fields->bytes)
                v[k] = load_wide(group + 64 * k + j);
            else if (k < SYMBOL_BYTES(fields))
                for (unsigned q = 0; q < ROWS(fields, k); q++)
                    v[k] = either(v[k], both(ones_at(group + 64 * k + 8 * q + j / 8), all_1(1u << q)));
        }
        EACH(elements_of_planes)(v);
        for (unsigned i = 0; i < SIZE; i++) {
            wide residue = both(EACH(left)(v[i], dropped), mantissas);
            residue = either(residue, both(EACH(left)(v[i], to_sign), sign));
            wide code = both(EACH(left)(EACH(right)(v[i], fields->residue), fields->mantissa), codes);
            put_wide(elements + (size_t)j * SIZE + i * WIDE, either(residue, EACH(plus)(code, bottom)));
        }
    }
}

TARGET INLINE void EACH(split_word)(const fields *fields, const uint8_t *symbols, uint8_t *group) {
    for (unsigned j = 0; j < 64; j += WIDE) {
        wide v[SIZE];
        for (unsigned k = 0; k < SIZE; k++) v[k] = load_wide(symbols + (size_t)j * SIZE + k * WIDE);
        EACH(planes_of_elements)(v);
        for (unsigned k = 0; k < SIZE && k < SYMBOL_BYTES(fields); k++) {
            if (k < fields->bytes) {
                put_wide(group + 64 * k + j, v[k]);
                continue;
            }
            for (unsigned q = 0; q < ROWS(fields, k); q++) {
                uint32_t row = bits_at(v[k], q);
                memcpy(group + 64 * k + 8 * q + j / 8, &row, WIDE / 8);
            }
        }
    }
}

TARGET INLINE uint64_t EACH(code_word)(const fields *fields, unsigned base, const uint8_t *elements, uint8_t *symbols) {
    unsigned dropped = fields->mantissa - fields->kept, to_sign = 8 * SIZE - 1 - fields->kept;
    wide exponents = EACH(all)((1u << fields->exponent) - 1), most = EACH(all)((1u << fields->width) - 1);
    wide mantissas = EACH(all)((1u << fields->kept) - 1), sign = EACH(all)(1u << fields->kept), bottom = EACH(all)(base);
    uint64_t inside = 0;
    for (unsigned j = 0; j < 64; j += WIDE) {
        wide found[SIZE];
        for (unsigned i = 0; i < SIZE; i++) {
            wide v = load_wide(elements + (size_t)j * SIZE + i * WIDE);
            wide code = EACH(minus)(both(EACH(right)(v, fields->mantissa), exponents), bottom);
            found[i] = EACH(at_most)(code, most);
            wide symbol = EACH(left)(both(code, found[i]), fields->residue);
            symbol = either(symbol, both(EACH(right)(v, dropped), mantissas));
            symbol = either(symbol, both(EACH(right)(v, to_sign), sign));
            put_wide(symbols + (size_t)j * SIZE + i * WIDE, symbol);
        }
        EACH(planes_of_elements)(found);
        inside |= (uint64_t)bits_at(found[0], 0) << j;
    }
    return ~inside;
}

TARGET INLINE void EACH(exponents_word)(const fields *fields, const uint8_t *elements, uint8_t *bytes) {
    wide exponents = EACH(all)((1u << fields->exponent) - 1);
    for (unsigned j = 0; j < 64; j += WIDE) {
        wide v[SIZE];
        for (unsigned i = 0; i < SIZE; i++)
            v[i] = both(EACH(right)(load_wide(elements + (size_t)j * SIZE + i * WIDE), fields->mantissa), exponents);
        EACH(planes_of_elements)(v);
        put_wide(bytes + j, v[0]);
    }
}

#undef WIDE
#undef SYMBOL_BYTES
#undef ROWS
