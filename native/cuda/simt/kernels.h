/* The kernels by the logarithm of the size of elements; their argument is a pointer to an endor_cuda_table. */
#ifndef ENDOR_SIMT_KERNELS_H
#define ENDOR_SIMT_KERNELS_H

namespace simt {
extern void (*const kernels[4])(const void *table);
}

#endif
