/* Decoding by threads that somebody else has: those of PyTorch, between its operators. None of them needs Python for it. */
#ifndef ENDOR_TEAM_H
#define ENDOR_TEAM_H

#include "endor.h"

/* Has `work` called with `job` by so many threads, of which the caller is one, and returns when all of them have: the
 * GOMP_parallel of GNU's OpenMP, whose last argument is 0. */
typedef void (*endor_start)(void (*work)(void *), void *job, unsigned threads, unsigned flags);

/* endor_decode, the range cut into `pieces` that a thread takes one after the other. What it gives is ENDOR_OK, or the status of
 * one of the pieces that failed, whichever; to name the first fault there is endor_decode. */
endor_status endor_decode_by(
    endor_start start, unsigned threads, uint64_t pieces, endor_target target, const endor_tensor *tensor,
    const endor_parts *parts, uint64_t first, uint64_t stop, void *out, size_t out_size, int flags);

#endif
