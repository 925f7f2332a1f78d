/* What decoding is measured against: as many bytes read, and as many written, by as many CTAs, and nothing done with them. */
#include <stdint.h>

/* `reads` and `writes` are the 16-byte words of a CTA. */
extern "C" __global__ void __launch_bounds__(256) limit(const uint4 *in, uint4 *out, unsigned reads, unsigned writes) {
    uint4 all = {0, 0, 0, 0};
    const uint4 *from = in + static_cast<uint64_t>(blockIdx.x) * reads;
    uint4 *to = out + static_cast<uint64_t>(blockIdx.x) * writes;
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < reads; i += 256) {
        uint4 one = from[i];
        all.x ^= one.x, all.y ^= one.y, all.z ^= one.z, all.w ^= one.w;
    }
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < writes; i += 256) to[i] = all;
}
