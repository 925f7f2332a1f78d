/* Jobs, checked, to launches: the host's side of the decoder. */
#include <stdlib.h>

#include "driver.h"
#include "image.h"
#include "table.h"
#include "tensor.h"

#define SIZES 4 /* of elements */
#define BLOCKS_MAX (UINT64_C(1) << 42) /* so that places go into a status word (fault.cuh) */
#define CTAS_MAX 0x7FFFFFFFu           /* of a launch */

/* Of CUresult and CUpointer_attribute. */
#define NO_CONTEXT 201
#define DEVICE_OF_POINTER 9

struct endor_cuda {
    driver driver;
    void *library;
    void *kernels[SIZES];
    int devices;
    void **primary; /* by device: its primary context once it was used, retained */
};

endor_status endor_cuda_open(const char *path, endor_cuda **opened) {
    static const char *const names[SIZES] = {"endor_decode_1", "endor_decode_2", "endor_decode_4", "endor_decode_8"};
    *opened = NULL;
    endor_cuda *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL) return ENDOR_TARGET;
    int good = driver_open(&cuda->driver, path) && cuda->driver.init(0) == 0 &&
               cuda->driver.device_count(&cuda->devices) == 0 && cuda->devices > 0 &&
               (cuda->primary = calloc((size_t)cuda->devices, sizeof *cuda->primary)) != NULL &&
               cuda->driver.load(&cuda->library, endor_cuda_image, NULL, NULL, 0, NULL, NULL, 0) == 0;
    for (int i = 0; good && i < SIZES; i++)
        good = cuda->driver.find_kernel(&cuda->kernels[i], cuda->library, names[i]) == 0;
    if (!good) {
        endor_cuda_close(cuda);
        return ENDOR_TARGET;
    }
    *opened = cuda;
    return ENDOR_OK;
}

int endor_cuda_devices(const endor_cuda *cuda) {
    return cuda->devices;
}

int endor_cuda_current(const endor_cuda *cuda) {
    void *context = NULL;
    int device;
    if (cuda->driver.current_context(&context) != 0 || context == NULL) return ENDOR_CUDA_CURRENT;
    return cuda->driver.current_device(&device) == 0 ? device : ENDOR_CUDA_CURRENT;
}

/* The primary context of a device, which stays: when the last one who has retained it lets it go, the driver destroys it. */
static int primary(endor_cuda *cuda, int device, void **context) {
    *context = __atomic_load_n(&cuda->primary[device], __ATOMIC_ACQUIRE);
    if (*context != NULL) return 0;
    int handle, result = cuda->driver.find_device(&handle, device);
    void *made = NULL;
    if (result == 0) result = cuda->driver.retain(&made, handle);
    if (result != 0) return result;
    if (__atomic_compare_exchange_n(&cuda->primary[device], context, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        *context = made;
    else
        cuda->driver.release(handle); /* another thread was faster: it is the same context, retained twice */
    return 0;
}

/* Makes the context of a device current. *entered: whether leave() has to undo that. */
static int enter(endor_cuda *cuda, int device, int *entered) {
    void *context = NULL;
    *entered = 0;
    if (device == ENDOR_CUDA_CURRENT) return 0;
    int result = primary(cuda, device, &context);
    if (result == 0) result = cuda->driver.push(context);
    *entered = result == 0;
    return result;
}

static int leave(endor_cuda *cuda, int entered) {
    void *context;
    return entered ? cuda->driver.pop(&context) : 0;
}

endor_status endor_cuda_load(endor_cuda *cuda, int device, int *result) {
    int entered;
    *result = 0;
    if (device < ENDOR_CUDA_CURRENT || device >= cuda->devices) return ENDOR_ARGUMENT;
    *result = enter(cuda, device, &entered);
    for (int i = 0; i < SIZES && *result == 0; i++) {
        void *function;
        *result = cuda->driver.find_function(&function, cuda->kernels[i]);
    }
    int left = leave(cuda, entered);
    if (*result == 0) *result = left;
    return *result == 0 ? ENDOR_OK : ENDOR_DRIVER;
}

void endor_cuda_close(endor_cuda *cuda) {
    if (cuda == NULL) return;
    if (cuda->library != NULL) cuda->driver.unload(cuda->library);
    for (int device = 0; cuda->primary != NULL && device < cuda->devices; device++) {
        int handle;
        if (cuda->primary[device] != NULL && cuda->driver.find_device(&handle, device) == 0)
            cuda->driver.release(handle);
    }
    driver_close(&cuda->driver);
    free(cuda->primary);
    free(cuda);
}

size_t endor_cuda_kernels_size(void) {
    return endor_cuda_image_size();
}

/* Memory that a kernel is told of. */
typedef struct span {
    uint64_t start, size;
} span;

static int overlap(span a, span b) {
    return a.size != 0 && b.size != 0 && a.start < b.start + b.size && b.start < a.start + a.size;
}

/* Whether the buffers of a job can be what their sizes say, and nothing is written to what is read. */
static int apart(const endor_cuda_job *job) {
    const endor_parts *parts = &job->parts;
    const span spans[7] = {
        {(uintptr_t)parts->values, parts->values_size},
        {(uintptr_t)parts->bitmap, parts->bitmap_size},
        {(uintptr_t)parts->index, parts->index_size},
        {(uintptr_t)parts->bases, parts->bases_size},
        {(uintptr_t)parts->patches, parts->patches_size},
        {(uintptr_t)job->out, job->out_size},
        {(uintptr_t)job->status, job->status != NULL ? sizeof *job->status : 0},
    };
    for (int i = 0; i < 7; i++)
        if (spans[i].size != 0 && (spans[i].start == 0 || spans[i].size > UINT64_MAX - spans[i].start)) return 0;
    for (int written = 5; written < 7; written++)
        for (int other = 0; other < written; other++)
            if (overlap(spans[written], spans[other])) return 0;
    return 1;
}

/* What the kernels are told of a job, but for its place among the others. */
static endor_status check(const endor_cuda_job *job, tensor *t, endor_cuda_entry *entry) {
    const endor_parts *parts = &job->parts;
    if (endor_open(ENDOR_SCALAR, &job->tensor, t) != ENDOR_OK || t->blocks > BLOCKS_MAX) return ENDOR_ARGUMENT;
    const size_t sizes[5] = {
        parts->values_size, parts->bitmap_size, parts->index_size, parts->bases_size, parts->patches_size};
    if (memcmp(sizes, t->sizes, sizeof sizes) != 0 || job->first > job->stop || job->stop > t->blocks ||
        job->stop - job->first >= CTAS_MAX || (uintptr_t)job->status % 8 != 0)
        return ENDOR_ARGUMENT;
    uint64_t size = (elements_before(t, job->stop) - elements_before(t, job->first)) << t->shift;
    if (job->out_size != (job->out != NULL ? size : 0) || !apart(job)) return ENDOR_ARGUMENT;
    *entry = (endor_cuda_entry){
        .values = parts->values,
        .bitmap = parts->bitmap,
        .index = parts->index,
        .bases = parts->bases,
        .patches = parts->patches,
        .out = job->out,
        .status = job->status,
        .numel = t->numel,
        .stored = t->stored,
        .patch_count = t->patches,
        .values_size = t->sizes[0],
        .first = job->first,
        .blocks = (uint32_t)(job->stop - job->first),
        .group = (uint16_t)(t->split ? t->fields.group : 0),
        .has_bitmap = (uint8_t)t->bitmap,
        .exponent = (uint8_t)t->fields.exponent,
        .mantissa = (uint8_t)t->fields.mantissa,
        .kept = (uint8_t)t->fields.kept,
        .width = (uint8_t)t->fields.width,
    };
    return ENDOR_OK;
}

/* A launch that is being put together. */
typedef struct launch {
    endor_cuda_table table;
    uint32_t ctas;
    unsigned shared;
} launch;

static int start(const endor_cuda *cuda, unsigned shift, launch *l, void *stream) {
    void *arguments[1] = {&l->table};
    int result = 0;
    if (l->table.count > 0)
        result = cuda->driver.launch(
            cuda->kernels[shift], l->ctas, 1, 1, ENDOR_CUDA_THREADS, 1, 1, l->shared, stream, arguments, NULL);
    l->table.count = 0;
    l->ctas = 0;
    l->shared = 0;
    return result;
}

/* All jobs whose elements have one size. */
static int start_all(const endor_cuda *cuda, const endor_cuda_job *jobs, size_t count, unsigned shift, void *stream) {
    launch l = {.ctas = 0};
    int result = 0;
    for (size_t i = 0; i < count && result == 0; i++) {
        tensor t;
        endor_cuda_entry entry;
        if (jobs[i].tensor.encoding.itemsize != 1u << shift) continue;
        check(&jobs[i], &t, &entry);
        uint32_t ctas = 1 + entry.blocks;
        if (l.table.count == ENDOR_CUDA_JOBS || ctas > CTAS_MAX - l.ctas) result = start(cuda, shift, &l, stream);
        entry.cta = l.ctas;
        l.table.entries[l.table.count++] = entry;
        l.ctas += ctas;
        unsigned shared = ENDOR_CUDA_SHARED(1u << shift, (unsigned)entry.group);
        if (shared > l.shared) l.shared = shared;
    }
    return result == 0 ? start(cuda, shift, &l, stream) : result;
}

/* The device that the first buffer of jobs lies on. */
static int device_of(const endor_cuda *cuda, const endor_cuda_job *jobs, size_t count, int *device) {
    for (size_t i = 0; i < count; i++) {
        const endor_parts *parts = &jobs[i].parts;
        const void *const buffers[7] = {
            parts->values, parts->bitmap, parts->index, parts->bases, parts->patches, jobs[i].out, jobs[i].status};
        for (int k = 0; k < 7; k++)
            if (buffers[k] != NULL && cuda->driver.about_pointer(device, DEVICE_OF_POINTER, (uintptr_t)buffers[k]) == 0)
                return *device >= 0 && *device < cuda->devices ? 0 : NO_CONTEXT;
    }
    return NO_CONTEXT;
}

endor_status endor_cuda_decode(
    endor_cuda *cuda, int device, const endor_cuda_job *jobs, size_t count, void *stream, int *result) {
    int entered;
    *result = 0;
    if (device < ENDOR_CUDA_CURRENT || device >= cuda->devices) return ENDOR_ARGUMENT;
    for (size_t i = 0; i < count; i++) {
        tensor t;
        endor_cuda_entry entry;
        endor_status status = check(&jobs[i], &t, &entry);
        if (status != ENDOR_OK) return status;
    }
    if (count == 0) return ENDOR_OK;
    if (device == ENDOR_CUDA_CURRENT && endor_cuda_current(cuda) == ENDOR_CUDA_CURRENT)
        *result = device_of(cuda, jobs, count, &device);
    if (*result == 0) *result = enter(cuda, device, &entered);
    else entered = 0;
    for (unsigned shift = 0; shift < SIZES && *result == 0; shift++)
        *result = start_all(cuda, jobs, count, shift, stream);
    int left = leave(cuda, entered);
    if (*result == 0) *result = left;
    return *result == 0 ? ENDOR_OK : ENDOR_DRIVER;
}

endor_status endor_cuda_fault(uint64_t word, uint64_t *block) {
    *block = UINT64_MAX;
    if (word == 0) return ENDOR_OK;
    /* As fault.cuh puts it together. What lies behind the last block has a place behind it too; it has no block. */
    uint64_t fault = ~word, place = fault >> 21;
    endor_status status = (endor_status)(fault & 0xFF);
    if ((status < ENDOR_B3 || status > ENDOR_B10) && (status < ENDOR_E2 || status > ENDOR_E8)) return ENDOR_ARGUMENT;
    int inside = status == ENDOR_B5 || status == ENDOR_B6 || status == ENDOR_B10 || status == ENDOR_E3 ||
                 status == ENDOR_E5 || status == ENDOR_E6 || status == ENDOR_E7;
    if (place > 0 && inside) *block = place - 1;
    return status;
}

const char *endor_cuda_message(const endor_cuda *cuda, int result) {
    const char *text = NULL;
    if (cuda->driver.describe(result, &text) != 0 || text == NULL) return "an error that the driver has no text for";
    return text;
}
