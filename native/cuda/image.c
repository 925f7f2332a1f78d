/* The fatbin, as it is, among the constants of the library. CMakeLists.txt defines ENDOR_CUDA_IMAGE, its path, where there is nvcc. */
#include "image.h"

#ifdef ENDOR_CUDA_IMAGE

__asm__(".section .rodata\n"
        ".balign 16\n"
        ".hidden endor_cuda_image\n"
        ".global endor_cuda_image\n"
        "endor_cuda_image:\n"
        ".incbin \"" ENDOR_CUDA_IMAGE "\"\n"
        ".hidden endor_cuda_image_end\n"
        ".global endor_cuda_image_end\n"
        "endor_cuda_image_end:\n"
        ".balign 16\n"
        ".previous\n");

extern const unsigned char endor_cuda_image_end[];

size_t endor_cuda_image_size(void) {
    return (size_t)(endor_cuda_image_end - endor_cuda_image);
}

#else

const unsigned char endor_cuda_image[64] = {0};

size_t endor_cuda_image_size(void) {
    return 0;
}

#endif
