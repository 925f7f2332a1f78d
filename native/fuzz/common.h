/* What the harnesses share: the bytes of an input one after the other, and buffers between pages that must not be touched. */
#ifndef ENDOR_FUZZ_COMMON_H
#define ENDOR_FUZZ_COMMON_H

#include "../tests/check.h"

/* The most elements of a tensor: three blocks and a bit. */
#define MOST (3 * ENDOR_BLOCK + 100)

/* An input. Behind its end it goes on with zeros. */
typedef struct input {
    const uint8_t *at, *end;
} input;

static uint64_t take(input *in, unsigned bytes) {
    uint64_t number = 0;
    for (unsigned i = 0; i < bytes && in->at < in->end; i++) number |= (uint64_t)*in->at++ << 8 * i;
    return number;
}

static void take_to(input *in, uint8_t *to, size_t size) {
    size_t left = (size_t)(in->end - in->at), taken = size < left ? size : left;
    memcpy(to, in->at, taken);
    memset(to + taken, 0, size - taken);
    in->at += taken;
}

/* Room for a buffer of any size up to MOST elements of 8 bytes, mapped once. */
typedef struct room {
    uint8_t *first, *behind;
} room;

/* A buffer of `size` bytes that ends, or begins, right at a page that cannot be touched. */
static uint8_t *place(room *room, size_t size, int at_the_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), length = roundup(8 * MOST + 64, page);
    if (room->first == NULL) {
        uint8_t *pages = mmap(NULL, length + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(pages != MAP_FAILED);
        CHECK(mprotect(pages + page, length, PROT_READ | PROT_WRITE) == 0);
        room->first = pages + page;
        room->behind = room->first + length;
    }
    CHECK(size <= length);
    return at_the_end ? room->behind - size : room->first;
}

#endif
