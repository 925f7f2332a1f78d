/* Random numbers of the tests, the same in every run. */
#ifndef ENDOR_TESTS_RANDOM_H
#define ENDOR_TESTS_RANDOM_H

#include <stdint.h>

static uint64_t state = 88172645463325252u;

static uint64_t any(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

#endif
