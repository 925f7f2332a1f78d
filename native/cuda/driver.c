/* The one place that knows how the driver's library is called and what is in it. */
#include "driver.h"

#include <string.h>

#if defined(_WIN32)

int driver_open(driver *d, const char *path) {
    (void)path;
    memset(d, 0, sizeof *d);
    return 0;
}

void driver_close(driver *d) {
    (void)d;
}

#else

#include <dlfcn.h>

int driver_open(driver *d, const char *path) {
    memset(d, 0, sizeof *d);
    const struct {
        const char *name;
        void *into;
    } functions[] = {
        {"cuInit", &d->init},
        {"cuDeviceGetCount", &d->device_count},
        {"cuDeviceGet", &d->find_device},
        {"cuDevicePrimaryCtxRetain", &d->retain},
        {"cuDevicePrimaryCtxRelease_v2", &d->release},
        {"cuCtxGetCurrent", &d->current_context},
        {"cuCtxGetDevice", &d->current_device},
        {"cuCtxPushCurrent_v2", &d->push},
        {"cuCtxPopCurrent_v2", &d->pop},
        {"cuPointerGetAttribute", &d->about_pointer},
        {"cuLibraryLoadData", &d->load}, /* since CUDA 12: for all contexts */
        {"cuLibraryUnload", &d->unload},
        {"cuLibraryGetKernel", &d->find_kernel},
        {"cuKernelGetFunction", &d->find_function},
        {"cuLaunchKernel", &d->launch},
        {"cuGetErrorString", &d->describe},
    };
    d->library = dlopen(path != NULL ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (d->library == NULL) return 0;
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *found = dlsym(d->library, functions[i].name);
        if (found == NULL) {
            driver_close(d);
            return 0;
        }
        /* POSIX: a pointer to a function is as large as one to data. */
        memcpy(functions[i].into, &found, sizeof found);
    }
    return 1;
}

void driver_close(driver *d) {
    if (d->library != NULL) dlclose(d->library);
    memset(d, 0, sizeof *d);
}

#endif
