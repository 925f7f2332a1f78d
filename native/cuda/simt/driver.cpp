/* A driver's library that is none: what native/cuda/driver.c opens, with the kernels on the CPU. Its devices' memory is the
 * program's, its streams do at once what they are asked for. So all that is around the kernels can be tested without a GPU.
 *
 * As of a real driver: every thread has a stack of contexts, at first none, and what needs a context fails without one; primary
 * contexts are retained and released; a launch fails if its stream, or the memory of one of its jobs, is another device's.
 *
 * ENDOR_SIMT_DEVICES is the number of devices, 1 without it; ENDOR_SIMT_WITHOUT names one that the kernels do not run on.
 * ENDOR_SIMT_FAIL names a function that is to fail; ENDOR_SIMT_SEED begins the random numbers. endor_simt_launches counts,
 * endor_simt_launched says on which device the last launch was, endor_simt_place puts memory onto a device (other memory is of device 0, and in reach of all),
 * endor_simt_retained counts how often its primary context is retained. A stream below 2^32 is any device's; others
 * have the number of their device, plus 1, in their high half.
 */
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "../table.h"
#include "kernels.h"
#include "simt.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

/* Of CUresult. */
static const int INVALID_VALUE = 1, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500,
                 ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719;
static const int MOST_DEVICES = 8;

/* A context: that of the device with its number. */
struct context {
    int device;
    int retained;
};
static context primaries[MOST_DEVICES] = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {6, 0}, {7, 0}};
static thread_local std::vector<context *> stack;

/* Memory that is not just anywhere. */
struct place {
    uintptr_t start;
    size_t size;
    int device;
};
static std::vector<place> places;

static std::mutex lock;
static unsigned long launches;
static int launched = -1;
static char library;

static int devices() {
    const char *number = getenv("ENDOR_SIMT_DEVICES");
    return number != nullptr ? std::min(atoi(number), MOST_DEVICES) : 1;
}

static context *current() {
    return stack.empty() ? nullptr : stack.back();
}

/* The device that an address is on; -1 if it is anywhere. */
static int device_of(uintptr_t address) {
    for (const place &one : places)
        if (address - one.start < one.size) return one.device;
    return -1;
}

static bool fails(const char *function) {
    const char *which = getenv("ENDOR_SIMT_FAIL");
    return which != nullptr && strcmp(which, function) == 0;
}

EXPORT unsigned long endor_simt_launches() {
    return launches;
}

EXPORT int endor_simt_launched() {
    return launched;
}

EXPORT int endor_simt_retained(int device) {
    std::lock_guard<std::mutex> guard(lock);
    return primaries[device].retained;
}

/* A device below 0: forgets the memory. */
EXPORT void endor_simt_place(void *start, size_t size, int device) {
    std::lock_guard<std::mutex> guard(lock);
    uintptr_t address = reinterpret_cast<uintptr_t>(start);
    for (size_t i = places.size(); i-- > 0;)
        if (places[i].start == address) places.erase(places.begin() + static_cast<std::ptrdiff_t>(i));
    if (device >= 0) places.push_back({address, size, device});
}

EXPORT int cuInit(unsigned flags) {
    const char *number = getenv("ENDOR_SIMT_SEED");
    if (number != nullptr) simt::seed(strtoull(number, nullptr, 10));
    return fails("cuInit") ? 100 : flags != 0;
}

EXPORT int cuDeviceGetCount(int *count) {
    *count = fails("cuDeviceGetCount") ? 0 : devices();
    return 0;
}

EXPORT int cuDeviceGet(int *device, int number) {
    *device = number;
    return number < 0 || number >= devices() ? INVALID_DEVICE : 0;
}

EXPORT int cuDevicePrimaryCtxRetain(void **found, int device) {
    if (fails("cuDevicePrimaryCtxRetain") || device < 0 || device >= devices()) return INVALID_DEVICE;
    std::lock_guard<std::mutex> guard(lock);
    primaries[device].retained++;
    *found = &primaries[device];
    return 0;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device) {
    std::lock_guard<std::mutex> guard(lock);
    if (primaries[device].retained == 0) return INVALID_CONTEXT;
    primaries[device].retained--;
    return 0;
}

EXPORT int cuCtxGetCurrent(void **found) {
    *found = current();
    return 0;
}

EXPORT int cuCtxGetDevice(int *device) {
    if (current() == nullptr) return INVALID_CONTEXT;
    *device = current()->device;
    return 0;
}

EXPORT int cuCtxPushCurrent_v2(void *pushed) {
    if (pushed == nullptr || fails("cuCtxPushCurrent_v2")) return INVALID_CONTEXT;
    stack.push_back(static_cast<context *>(pushed));
    return 0;
}

EXPORT int cuCtxPopCurrent_v2(void **popped) {
    if (stack.empty()) return INVALID_CONTEXT;
    *popped = stack.back();
    stack.pop_back();
    return 0;
}

EXPORT int cuPointerGetAttribute(void *about, int attribute, unsigned long long pointer) {
    std::lock_guard<std::mutex> guard(lock);
    int device = device_of(static_cast<uintptr_t>(pointer));
    if (attribute != 9 || fails("cuPointerGetAttribute")) return INVALID_VALUE;
    if (device < 0) device = 0;
    memcpy(about, &device, sizeof device);
    return 0;
}

EXPORT int cuLibraryLoadData(
    void **loaded, const void *, int *, void **, unsigned, int *, void **, unsigned) {
    *loaded = &library;
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

/* Whether the kernels run on the current device. */
static int loaded() {
    if (current() == nullptr) return INVALID_CONTEXT;
    const char *without = getenv("ENDOR_SIMT_WITHOUT");
    return without != nullptr && atoi(without) == current()->device ? NO_BINARY : 0;
}

EXPORT int cuKernelGetFunction(void **function, void *kernel) {
    *function = kernel;
    return fails("cuKernelGetFunction") ? NO_BINARY : loaded();
}

EXPORT int cuLaunchKernel(
    void *function, unsigned x, unsigned y, unsigned z, unsigned lanes, unsigned, unsigned, unsigned shared, void *stream,
    void **arguments, void **) {
    if (fails("cuLaunchKernel") || x == 0 || y != 1 || z != 1) return LAUNCH_FAILED;
    int result = loaded();
    if (result != 0) return result;
    uint64_t owner = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(stream)) >> 32;
    if (owner != 0 && owner != static_cast<uint64_t>(current()->device) + 1) return INVALID_HANDLE;
    {
        std::lock_guard<std::mutex> guard(lock);
        const endor_cuda_table &table = *static_cast<const endor_cuda_table *>(arguments[0]);
        for (uint32_t i = 0; i < table.count; i++) {
            const endor_cuda_entry &job = table.entries[i];
            const void *const buffers[] = {job.values, job.bitmap, job.index, job.bases, job.patches, job.out, job.status};
            for (const void *buffer : buffers) {
                int device = device_of(reinterpret_cast<uintptr_t>(buffer));
                if (device >= 0 && device != current()->device) return ILLEGAL_ADDRESS;
            }
        }
        launches++;
        launched = current()->device;
    }
    simt::launch(reinterpret_cast<void (*)(const void *)>(function), arguments[0], x, lanes, shared);
    return 0;
}

EXPORT int cuGetErrorString(int result, const char **text) {
    *text = result == LAUNCH_FAILED ? "unspecified launch failure" : nullptr;
    return *text == nullptr;
}
