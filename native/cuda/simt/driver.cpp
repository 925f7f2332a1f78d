/* A driver's library that is none: what native/cuda/driver.c opens, with the kernels on the CPU. Its device's memory is the
 * program's, its streams do at once what they are asked for. So all that is around the kernels can be tested without a GPU.
 *
 * ENDOR_SIMT_FAIL names a function that is to fail; ENDOR_SIMT_SEED begins the random numbers. endor_simt_launches counts.
 */
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "simt.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

static const int NO_BINARY = 209, NOT_FOUND = 500, LAUNCH_FAILED = 719; /* of CUresult */
static unsigned long launches;

static bool fails(const char *function) {
    const char *which = getenv("ENDOR_SIMT_FAIL");
    return which != nullptr && strcmp(which, function) == 0;
}

EXPORT unsigned long endor_simt_launches() {
    return launches;
}

EXPORT int cuInit(unsigned flags) {
    const char *number = getenv("ENDOR_SIMT_SEED");
    if (number != nullptr) simt::seed(strtoull(number, nullptr, 10));
    return fails("cuInit") ? 100 : flags != 0;
}

EXPORT int cuDeviceGetCount(int *count) {
    *count = fails("cuDeviceGetCount") ? 0 : 1;
    return 0;
}

EXPORT int cuCtxGetCurrent(void **context) {
    *context = &launches;
    return 0;
}

EXPORT int cuLibraryLoadData(
    void **library, const void *, int *, void **, unsigned, int *, void **, unsigned) {
    *library = &launches;
    return fails("cuLibraryLoadData") ? NO_BINARY : 0;
}

EXPORT int cuLibraryUnload(void *) {
    return 0;
}

EXPORT int cuLibraryGetKernel(void **kernel, void *, const char *name) {
    static const char *const names[4] = {"endor_decode_1", "endor_decode_2", "endor_decode_4", "endor_decode_8"};
    if (fails("cuLibraryGetKernel")) return NOT_FOUND;
    for (unsigned i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) {
            *kernel = reinterpret_cast<void *>(simt::kernels[i]);
            return 0;
        }
    return NOT_FOUND;
}

EXPORT int cuKernelGetFunction(void **function, void *kernel) {
    *function = kernel;
    return fails("cuKernelGetFunction") ? NO_BINARY : 0;
}

EXPORT int cuLaunchKernel(
    void *function, unsigned x, unsigned y, unsigned z, unsigned lanes, unsigned, unsigned, unsigned shared, void *,
    void **arguments, void **) {
    if (fails("cuLaunchKernel") || x == 0 || y != 1 || z != 1) return LAUNCH_FAILED;
    launches++;
    simt::launch(reinterpret_cast<void (*)(const void *)>(function), arguments[0], x, lanes, shared);
    return 0;
}

EXPORT int cuGetErrorString(int result, const char **text) {
    *text = result == LAUNCH_FAILED ? "unspecified launch failure" : nullptr;
    return *text == nullptr;
}
