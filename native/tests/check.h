/* What tests and fuzzers share: what they check with, and on which targets. */
#ifndef ENDOR_CHECK_H
#define ENDOR_CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <endor.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LENGTH(array) (sizeof(array) / sizeof(array)[0])
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static const endor_target targets[] = {ENDOR_SCALAR, ENDOR_AVX2, ENDOR_AVX512, ENDOR_NEON};

static inline size_t roundup(size_t count, size_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

/* The floats that are split, and raw elements of each size. */
typedef struct kind {
    uint32_t itemsize, exponent, mantissa;
} kind;

static const kind floats[] = {{1, 4, 3}, {1, 5, 2}, {2, 8, 7}, {2, 5, 10}, {4, 8, 23}};

static inline endor_encoding raw(size_t itemsize) {
    return (endor_encoding){.itemsize = (uint32_t)itemsize};
}

static inline endor_encoding split(kind of, uint32_t positions, uint32_t kept, uint32_t width) {
    return (endor_encoding){of.itemsize, positions, ENDOR_SPLIT, of.exponent, of.mantissa, kept, width};
}

/* Buffers as parts, of the sizes that a tensor's are, and the same to be filled. */
static inline endor_parts as_parts(uint8_t *const at[5], const size_t sizes[5]) {
    return (endor_parts){at[0], sizes[0], at[1], sizes[1], at[2], sizes[2], at[3], sizes[3], at[4], sizes[4]};
}

static inline endor_room as_room(uint8_t *const at[5], const size_t sizes[5]) {
    return (endor_room){at[0], sizes[0], at[1], sizes[1], at[2], sizes[2], at[3], sizes[3], at[4], sizes[4]};
}

#endif
