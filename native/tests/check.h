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

/* The sizes of the parts, given how many elements there are and how many of them are stored. */
static inline endor_parts parts_of(size_t itemsize, size_t numel, uint64_t nnz) {
    return (endor_parts){
        .values_size = roundup((size_t)nnz * itemsize, 64),
        .bitmap_size = roundup(numel / 8 + (numel % 8 != 0), 64),
        .index_size = 8 * roundup((size_t)endor_blocks(numel) + 1, 8),
    };
}

#endif
