/* What is asked before anything is encoded or decoded: targets, and the sizes of parts. */
#include "tensor.h"

#include "cpu.h"

uint64_t endor_blocks(uint64_t numel) {
    return numel / ENDOR_BLOCK + (numel % ENDOR_BLOCK != 0);
}

int endor_has(endor_target target) {
    return target == ENDOR_AUTO || endor_cpu_has(target);
}

endor_target endor_best(void) {
    return endor_cpu_best();
}

const kernels *endor_kernels(endor_target target) {
    if (target == ENDOR_AUTO) target = endor_cpu_best();
    if (!endor_cpu_has(target)) return NULL;
    switch (target) {
#ifdef ENDOR_X86
    case ENDOR_AVX512: return &endor_avx512;
    case ENDOR_AVX2: return &endor_avx2;
#endif
#ifdef ENDOR_ARM
    case ENDOR_NEON: return &endor_neon;
#endif
    default: return &endor_scalar;
    }
}

int endor_shift(size_t itemsize) {
    switch (itemsize) {
    case 1: return 0;
    case 2: return 1;
    case 4: return 2;
    case 8: return 3;
    default: return -1;
    }
}

int endor_splits(const endor_encoding *encoding) {
    static const uint8_t floats[][3] = {{1, 4, 3}, {1, 5, 2}, {2, 5, 10}, {2, 8, 7}, {4, 8, 23}};
    for (size_t i = 0; i < sizeof floats / sizeof floats[0]; i++)
        if (encoding->itemsize == floats[i][0] && encoding->exponent == floats[i][1] &&
            encoding->mantissa == floats[i][2])
            return 1;
    return 0;
}

/* Of what, and into which parts, a tensor is encoded; without a target. */
static endor_status measure(const endor_tensor *given, tensor *t) {
    const endor_encoding *e = &given->encoding;
    int shift = endor_shift(e->itemsize);
    if (shift < 0 || e->positions > ENDOR_ALL || e->values > ENDOR_SPLIT) return ENDOR_ARGUMENT;
    *t = (tensor){
        .shift = (unsigned)shift,
        .bitmap = e->positions == ENDOR_BITMAP,
        .split = e->values == ENDOR_SPLIT,
        .numel = given->numel,
        .stored = given->stored,
        .patches = given->patches,
        .blocks = endor_blocks(given->numel),
    };
    if (!t->bitmap && !t->split) return ENDOR_ARGUMENT;
    /* So that no size wraps around. */
    if (t->numel > UINT64_MAX / 64 || t->stored > t->numel || (!t->bitmap && t->stored != t->numel)) return ENDOR_ARGUMENT;
    t->row = 8 * roundup(t->blocks + 1, 8);
    uint64_t sizes[5] = {0, 0, 0, 0, 0};
    if (t->split) {
        if (!endor_splits(e) || e->kept > e->mantissa || e->width < 1 || e->width > 4 || e->width >= e->exponent ||
            t->patches > t->stored)
            return ENDOR_ARGUMENT;
        t->fields = fields_of(e->exponent, e->mantissa, e->kept, e->width);
        sizes[0] = roundup(t->stored, 8 * GROUP) / GROUP * t->fields.group;
        sizes[3] = roundup(t->blocks, LINE);
        sizes[4] = 3 * roundup(t->patches, LINE);
    } else {
        if (t->patches != 0) return ENDOR_ARGUMENT;
        sizes[0] = roundup(t->stored << shift, LINE);
    }
    if (t->bitmap) sizes[1] = roundup(t->numel / 8 + (t->numel % 8 != 0), LINE);
    sizes[2] = t->row * (unsigned)(t->bitmap + t->split);
    for (int i = 0; i < 5; i++) {
        if (sizes[i] > SIZE_MAX) return ENDOR_ARGUMENT;
        t->sizes[i] = (size_t)sizes[i];
    }
    return ENDOR_OK;
}

endor_status endor_sizes(const endor_tensor *given, size_t sizes[5]) {
    tensor t;
    endor_status status = measure(given, &t);
    if (status == ENDOR_OK) memcpy(sizes, t.sizes, sizeof t.sizes);
    return status;
}

endor_status endor_open(endor_target target, const endor_tensor *given, tensor *t) {
    endor_status status = measure(given, t);
    if (status != ENDOR_OK) return status;
    t->kernels = endor_kernels(target);
    return t->kernels == NULL ? ENDOR_TARGET : ENDOR_OK;
}
