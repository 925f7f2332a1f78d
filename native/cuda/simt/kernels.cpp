/* The kernels as they are, compiled for the CPU. */
#include "simt.h"

#include "../kernels.cu"

#include "kernels.h"

namespace simt {

template <void kernel(const endor_cuda_table)>
static void call(const void *table) {
    kernel(*static_cast<const endor_cuda_table *>(table));
}

void (*const kernels[4])(const void *) = {
    call<endor_decode_1>, call<endor_decode_2>, call<endor_decode_4>, call<endor_decode_8>};

} // namespace simt
