/* The kernels of one target, made of what it does with words. Included once by each target, which has defined
 *
 *   TARGET        the attributes of its functions
 *   KERNELS       the name of its table
 *   WORDS         the file of its operations on words, which is included once for each SIZE of an element in bytes
 *   ONES(word)    the number of 1 bits of a word
 *   WIDEST        bytes of its widest store that passes the caches
 *   move(from, out, stream)   copies 64 bytes
 *   any_bits(p, size)         the bits that one of the 64-bit words of whole 64 bytes has
 *   FEW           how many different bytes may be looked for one after the other, by
 *   same(bytes, count, byte)  how many of up to 4096 bytes, whole words of them, are this one
 *   FENCE()       makes such stores seen before those that follow
 *
 * The operations on words, 64 elements of SIZE bytes each, without any alignment:
 *
 *   EACH(expand_word)(word, values, out, stream)   elements to their places; reads at most 64, whatever `word` is; returns
 *                                                  where the values of the next word begin. `stream`: stores may pass
 *                                                  the caches, `out` has this alignment; 0 if they may not
 *   EACH(compress_word)(dense, values)             the other way; writes at most 64 elements; returns the word
 *   EACH(filled_word)(dense)                       the word alone
 *   EACH(zero_word)(values)                        not 0 if one of the 64 elements is zero
 *
 * and for sizes up to 4:
 *
 *   EACH(join_word)(fields, base, group, elements)      a group to elements
 *   EACH(split_word)(fields, symbols, group)            symbols to a group
 *   EACH(code_word)(fields, base, elements, symbols)    elements to symbols; returns the word of those that are outside of
 *                                                       the window; their code is 0
 *   EACH(exponents_word)(fields, elements, bytes)       the exponents of elements
 */
#define JOIN_(name, size) name##_##size
#define JOIN(name, size) JOIN_(name, size)
#define EACH(name) JOIN(name, SIZE)
#define WORD_SIZE (64 * SIZE)
#define ELEMENT(size) JOIN(element, size)

/* How often each byte is there, among whole words of them. */
TARGET static void count_bytes(const uint8_t *bytes, unsigned count, uint16_t counts[EXPONENTS]) {
    /* Of those that are not 0: one less, from 0 to 255. */
    uint8_t low = 255, high = 0;
    for (unsigned i = 0; i < count; i++) {
        uint8_t less = (uint8_t)(bytes[i] - 1), byte = bytes[i];
        low = less < low ? less : low;
        high = byte > high ? byte : high;
    }
    memset(counts, 0, EXPONENTS * sizeof *counts);
    if (high - low <= FEW) {
        /* Exponents of weights are few: to look for each of them is faster than to count one after the other. */
        counts[0] = (uint16_t)same(bytes, count, 0);
        for (unsigned byte = low + 1u; byte <= high; byte++) counts[byte] = (uint16_t)same(bytes, count, (uint8_t)byte);
        return;
    }
    /* Four tables: to count in the one that has just been counted in would have to wait for that. */
    uint16_t tables[4][EXPONENTS] = {{0}};
    for (unsigned i = 0; i < count; i += 8) {
        uint64_t eight;
        memcpy(&eight, bytes + i, sizeof eight);
        for (unsigned k = 0; k < 8; k++) tables[k % 4][eight >> 8 * k & 0xFF]++;
    }
    for (unsigned k = 0; k < EXPONENTS; k++)
        counts[k] = (uint16_t)(tables[0][k] + tables[1][k] + tables[2][k] + tables[3][k]);
}

#define SIZE 1
#include "operations.h"
#undef SIZE
#define SIZE 2
#include "operations.h"
#undef SIZE
#define SIZE 4
#include "operations.h"
#undef SIZE
#define SIZE 8
#include "operations.h"
#undef SIZE

TARGET static unsigned take(const uint8_t *bitmap, uint64_t bits[BLOCK_WORDS]) {
    unsigned ones = 0;
    for (unsigned i = 0; i < BLOCK_WORDS; i++) {
        uint64_t word;
        memcpy(&word, bitmap + 8 * i, sizeof word);
        bits[i] = word;
        ones += (unsigned)ONES(word);
    }
    return ones;
}

TARGET static unsigned ones(const uint64_t *bits, unsigned words) {
    unsigned ones = 0;
    for (unsigned i = 0; i < words; i++) ones += (unsigned)ONES(bits[i]);
    return ones;
}

TARGET static unsigned widen(uint16_t sums[WINDOWS], unsigned width) {
    unsigned half = 1u << (width - 1);
    uint16_t wider[EXPONENTS], most = 0;
    for (unsigned i = 0; i < EXPONENTS; i++) {
        wider[i] = (uint16_t)(sums[i] + sums[i + half]);
        most = wider[i] > most ? wider[i] : most;
    }
    memcpy(sums, wider, sizeof wider);
    return most;
}

TARGET INLINE void move_all(const uint8_t *from, size_t size, uint8_t *out, int stream) {
    size_t i = 0;
    for (; i + 64 <= size; i += 64) move(from + i, out + i, stream);
    memcpy(out + i, from + i, size - i);
}

TARGET static void copy(const uint8_t *from, size_t size, uint8_t *out, int stream) {
    if (stream && (uintptr_t)out % WIDEST == 0)
        move_all(from, size, out, WIDEST);
    else
        move_all(from, size, out, stream ? ENDOR_STREAM_ALIGNMENT : 0);
}

TARGET static void fence(void) {
    FENCE();
}

#define SPLIT_SIZES(kernel) {kernel##_1, kernel##_2, kernel##_4}
#define ALL_SIZES(kernel) {kernel##_1, kernel##_2, kernel##_4, kernel##_8}

const kernels KERNELS = {
    take,
    ones,
    ALL_SIZES(expand),
    ALL_SIZES(compress),
    ALL_SIZES(count),
    ALL_SIZES(any_zero),
    SPLIT_SIZES(join),
    SPLIT_SIZES(split),
    SPLIT_SIZES(code),
    SPLIT_SIZES(tally),
    SPLIT_SIZES(patch),
    widen,
    copy,
    fence,
};
