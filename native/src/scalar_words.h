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
#include "split_words.h"
#endif
