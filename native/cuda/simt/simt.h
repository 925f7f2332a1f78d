/* CUDA C++ on a CPU, lane by lane, for tests: what the kernels use of the language and no more.
 *
 * Every lane of a CTA is a fiber with a stack of its own. Lanes wait for each other at barriers and warp operations alone; who
 * goes on is chosen at random, so that what relies on an order that nothing enforces gives another result, sooner or later.
 * CTAs run one after the other, in random order. Memory that is shared is what malloc has left there: filled with garbage
 * before each CTA. Run under the sanitizers: what a lane touches is ordinary memory.
 */
#ifndef ENDOR_SIMT_H
#define ENDOR_SIMT_H

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}

namespace simt {

struct position {
    unsigned x;
};

extern position lane, cta;

/* Runs a kernel, whose arguments `body` knows, to its end. At most 48 KiB of shared memory. */
void launch(void (*body)(const void *arguments), const void *arguments, unsigned ctas, unsigned lanes, unsigned shared);

/* Of random numbers; printed when something is wrong. */
void seed(uint64_t number);

enum operation { BARRIER, BARRIER_OR, SHUFFLE, SHUFFLE_UP };

/* Waits for all lanes of the CTA. Whether the value of one was not 0. */
int barrier(operation which, int value);

/* Waits for all lanes of the warp, which do the same. The value of another lane. */
unsigned exchange(operation which, unsigned mask, unsigned value, unsigned number);

} // namespace simt

#define threadIdx (simt::lane)
#define blockIdx (simt::cta)

static inline void __syncthreads() {
    simt::barrier(simt::BARRIER, 0);
}
static inline int __syncthreads_or(int value) {
    return simt::barrier(simt::BARRIER_OR, value);
}
static inline unsigned __shfl_sync(unsigned mask, unsigned value, unsigned from) {
    return simt::exchange(simt::SHUFFLE, mask, value, from);
}
static inline unsigned __shfl_up_sync(unsigned mask, unsigned value, unsigned by) {
    return simt::exchange(simt::SHUFFLE_UP, mask, value, by);
}
static inline unsigned __popc(unsigned word) {
    return static_cast<unsigned>(__builtin_popcount(word));
}
/* Selectors as the kernels have them: without the bit that repeats a sign. */
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned select) {
    uint64_t both = low | static_cast<uint64_t>(high) << 32;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; i++) result |= static_cast<unsigned>(both >> (select >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
    return result;
}
static inline unsigned long long atomicMax(unsigned long long *address, unsigned long long value) {
    unsigned long long old = *address;
    if (value > old) *address = value;
    return old;
}

#endif
