/* The kernels, as nvcc has compiled them for many devices: a fatbin. Without nvcc there are 64 zeros, which no driver takes. */
#ifndef ENDOR_CUDA_IMAGE_H
#define ENDOR_CUDA_IMAGE_H

#include <stddef.h>

extern const unsigned char endor_cuda_image[];

/* Its size; 0 without nvcc. */
size_t endor_cuda_image_size(void);

#endif
