/* The functions of the CUDA driver that are used, from its library as it is on this machine. No header of CUDA is needed. */
#ifndef ENDOR_CUDA_DRIVER_H
#define ENDOR_CUDA_DRIVER_H

#include <stddef.h>
#include <stdint.h>

/* CUresult; 0 is success. */
typedef int driver_result;

typedef struct driver {
    void *library;
    driver_result (*init)(unsigned flags);
    driver_result (*device_count)(int *count);
    driver_result (*find_device)(int *device, int number);
    driver_result (*retain)(void **context, int device);
    driver_result (*release)(int device);
    driver_result (*current_context)(void **context);
    driver_result (*current_device)(int *device);
    driver_result (*push)(void *context);
    driver_result (*pop)(void **context);
    driver_result (*about_pointer)(void *about, int attribute, uint64_t pointer);
    driver_result (*load)(
        void **library, const void *image, int *jit, void **jit_values, unsigned jits, int *options, void **values,
        unsigned count);
    driver_result (*unload)(void *library);
    driver_result (*find_kernel)(void **kernel, void *library, const char *name);
    driver_result (*find_function)(void **function, void *kernel);
    driver_result (*launch)(
        void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
        unsigned block_z, unsigned shared, void *stream, void **arguments, void **extra);
    driver_result (*describe)(driver_result result, const char **text);
} driver;

/* Whether there is such a library with all of these; NULL: the system's. */
int driver_open(driver *d, const char *path);

void driver_close(driver *d);

#endif
