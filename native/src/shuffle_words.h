/* Words of the targets with a shuffle of 16 bytes, cluster by cluster. The target has defined
 *
 *   vector, wide                    16 bytes, and what is best for a simple pass over memory
 *   load, load_8, put, put_8        of 16 or 8 bytes; put(out, v, stream)
 *   pair(low, high)                 the low halves of two vectors
 *   shuffle(v, places)
 *   halves_16, _32, _64 (a, b)      vectors whose lanes of so many bits are all ones or all zeros, to lanes of half the size
 *   zeros_1, _2, _4, _8 (v)         all ones where an element is zero
 *   word_of_zeros(v0, v1, v2, v3)   from flags of 64 bytes, the word of those that are not set
 *   load_wide, wide_zeros_1 ... _8, either, any_bit
 */
#define CLUSTER JOIN(CLUSTER, SIZE)
#define TABLE(tables) (tables).JOIN(of, SIZE)
#define CLUSTER_BITS(word, j) ((unsigned)((word) >> (j)) & ((1u << CLUSTER) - 1))

TARGET INLINE const uint8_t *EACH(expand_word)(uint64_t word, const uint8_t *values, uint8_t *out, int stream) {
    for (unsigned j = 0; j < 64; j += CLUSTER) {
        unsigned bits = CLUSTER_BITS(word, j);
#if SIZE == 1
        /* Two clusters, 16 elements, for one store. */
        vector low = shuffle(load_8(values), load_8(TABLE(endor_expanding)[bits]));
        values += ONES(bits);
        j += CLUSTER;
        bits = CLUSTER_BITS(word, j);
        vector high = shuffle(load_8(values), load_8(TABLE(endor_expanding)[bits]));
        put(out + j - CLUSTER, pair(low, high), stream);
#else
        put(out + (size_t)j * SIZE, shuffle(load(values), load(TABLE(endor_expanding)[bits])), stream);
#endif
        values += (size_t)ONES(bits) * SIZE;
    }
    return values;
}

/* Zero elements among 16, as bytes. */
TARGET INLINE vector EACH(zeros_of_16)(const uint8_t *p) {
#if SIZE == 1
    return zeros_1(load(p));
#elif SIZE == 2
    return halves_16(zeros_2(load(p)), zeros_2(load(p + 16)));
#else
    vector quarter[4];
    for (int i = 0; i < 4; i++) {
#if SIZE == 4
        quarter[i] = zeros_4(load(p + 16 * i));
#else
        quarter[i] = halves_64(zeros_8(load(p + 32 * i)), zeros_8(load(p + 32 * i + 16)));
#endif
    }
    return halves_16(halves_32(quarter[0], quarter[1]), halves_32(quarter[2], quarter[3]));
#endif
}

TARGET INLINE uint64_t EACH(filled_word)(const uint8_t *dense) {
    return word_of_zeros(EACH(zeros_of_16)(dense), EACH(zeros_of_16)(dense + 16 * SIZE),
                         EACH(zeros_of_16)(dense + 32 * SIZE), EACH(zeros_of_16)(dense + 48 * SIZE));
}

TARGET INLINE uint64_t EACH(compress_word)(const uint8_t *dense, uint8_t *values) {
    uint64_t word = EACH(filled_word)(dense);
    for (unsigned j = 0; j < 64; j += CLUSTER) {
        unsigned bits = CLUSTER_BITS(word, j);
#if SIZE == 1
        put_8(values, shuffle(load_8(dense + j), load_8(TABLE(endor_compressing)[bits])));
#else
        put(values, shuffle(load(dense + (size_t)j * SIZE), load(TABLE(endor_compressing)[bits])), 0);
#endif
        values += (size_t)ONES(bits) * SIZE;
    }
    return word;
}

TARGET INLINE uint64_t EACH(zero_word)(const uint8_t *values) {
    wide found = EACH(wide_zeros)(load_wide(values));
    for (size_t i = sizeof(wide); i < WORD_SIZE; i += sizeof(wide))
        found = either(found, EACH(wide_zeros)(load_wide(values + i)));
    return any_bit(found);
}

#undef CLUSTER
#undef TABLE
#undef CLUSTER_BITS

#if SIZE <= 4
#include "shuffle_split.h"
#endif
