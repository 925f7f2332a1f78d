/* Copies whose destination need not be in the caches, for what is larger than they are. */
#ifndef ENDOR_COPY_H
#define ENDOR_COPY_H

#include <stdint.h>
#include <string.h>

#ifdef __SSE2__ /* as everywhere on 64-bit x86 */
#include <emmintrin.h>
#endif

/* Copies. With `past`, whole lines are stored past the caches, and copied_past() has to follow at the end. */
static inline void copy_past(uint8_t *to, const uint8_t *from, size_t size, int past) {
#ifdef __SSE2__
    if (past) {
        /* Not by the library's functions: see take_block in kernels.h. */
        for (; size > 0 && (uintptr_t)to % 64 != 0; size--) *to++ = *from++;
        for (; size >= 64; to += 64, from += 64, size -= 64)
            for (unsigned i = 0; i < 64; i += 16)
                _mm_stream_si128((void *)(to + i), _mm_loadu_si128((const void *)(from + i)));
        for (; size > 0; size--) *to++ = *from++;
        return;
    }
#else
    (void)past;
#endif
    memcpy(to, from, size);
}

/* What was stored past the caches becomes visible before what is stored from now on. */
static inline void copied_past(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

#endif
