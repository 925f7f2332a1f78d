/* Jobs, checked, to launches: the host's side of the decoder. */
#include <stdlib.h>

#include "driver.h"
#include "image.h"
#include "table.h"
#include "tensor.h"

#define SIZES 4 /* of elements */
#define BLOCKS_MAX (UINT64_C(1) << 42) /* so that places go into a status word (fault.cuh) */
#define CTAS_MAX 0x7FFFFFFFu           /* of a launch */

struct endor_cuda {
    driver driver;
    void *library;
    void *kernels[SIZES];
};

endor_status endor_cuda_open(const char *path, endor_cuda **opened) {
    static const char *const names[SIZES] = {"endor_decode_1", "endor_decode_2", "endor_decode_4", "endor_decode_8"};
    *opened = NULL;
    endor_cuda *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL) return ENDOR_TARGET;
    int devices = 0, result = 0;
    int good = driver_open(&cuda->driver, path) && cuda->driver.init(0) == 0 &&
               cuda->driver.device_count(&devices) == 0 && devices > 0 &&
               cuda->driver.load(&cuda->library, endor_cuda_image, NULL, NULL, 0, NULL, NULL, 0) == 0;
    for (int i = 0; good && i < SIZES; i++)
        good = cuda->driver.find_kernel(&cuda->kernels[i], cuda->library, names[i]) == 0;
    void *context = NULL;
    if (good && cuda->driver.current_context(&context) == 0 && context != NULL)
        good = endor_cuda_load(cuda, &result) == ENDOR_OK;
    if (!good) {
        endor_cuda_close(cuda);
        return ENDOR_TARGET;
    }
    *opened = cuda;
    return ENDOR_OK;
}

endor_status endor_cuda_load(const endor_cuda *cuda, int *result) {
    *result = 0;
    for (int i = 0; i < SIZES && *result == 0; i++) {
        void *function;
        *result = cuda->driver.find_function(&function, cuda->kernels[i]);
    }
    return *result == 0 ? ENDOR_OK : ENDOR_DRIVER;
}

void endor_cuda_close(endor_cuda *cuda) {
    if (cuda == NULL) return;
    if (cuda->library != NULL) cuda->driver.unload(cuda->library);
    driver_close(&cuda->driver);
    free(cuda);
}

size_t endor_cuda_kernels_size(void) {
    return endor_cuda_image_size();
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
    if (job->out_size != (job->out != NULL ? size : 0)) return ENDOR_ARGUMENT;
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

endor_status endor_cuda_decode(
    const endor_cuda *cuda, const endor_cuda_job *jobs, size_t count, void *stream, int *result) {
    *result = 0;
    for (size_t i = 0; i < count; i++) {
        tensor t;
        endor_cuda_entry entry;
        endor_status status = check(&jobs[i], &t, &entry);
        if (status != ENDOR_OK) return status;
    }
    for (unsigned shift = 0; shift < SIZES && *result == 0; shift++)
        *result = start_all(cuda, jobs, count, shift, stream);
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
