/* The parts of a tensor, block by block, each checked before it is used. */
#ifndef ENDOR_BLOCK_H
#define ENDOR_BLOCK_H

#include "tensor.h"

/* A tensor, its parts, and where in them a fault was found. */
typedef struct reader {
    tensor t;
    endor_parts parts;
    uint64_t offset;
} reader;

/* What the index counts before a block. */
typedef struct place {
    uint64_t rank, patch;
} place;

/* Words of a block's bitmap, or so many elements: from .. to - 1. */
typedef struct words {
    unsigned from, to;
} words;

static const words all_words = {0, BLOCK_WORDS};

/* B-4 and B-7, and for the last block what lies behind it in the bitmap and the index: B-3 and B-8. */
endor_status endor_check_ends(reader *r, int last);

/* What lies behind the last block in the other parts: B-9 or E-2, E-4, E-8. */
endor_status endor_check_padding(reader *r);

/* Where a block begins: its index entries, which are checked. */
endor_status endor_place(reader *r, uint64_t block, place *at);

/* Checks a block that begins at *at, which goes on to where it ends: its index entries, its bitmap, its base and its patches;
 * E-7 and B-10 for the words that are wanted. Writes the elements of those words to their places in `out`, unless that is NULL.
 * Each index entry, word of the bitmap, base and patch is read once. If raw values are not `stable`, since somebody may write
 * to them, what is looked at for zeros is `out`. */
endor_status endor_block(reader *r, uint64_t block, place *at, words wanted, uint8_t *out, int stream, int stable);

#endif
