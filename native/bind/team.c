/* A counter that every thread takes its next piece from. */
#include "team.h"

typedef struct job {
    endor_target target;
    const endor_tensor *tensor;
    const endor_parts *parts;
    uint64_t first, blocks, pieces;
    uint8_t *out;
    size_t out_size, block_size;
    int flags;
    uint64_t taken;
    int status;
} job;

/* Who has no GNU OpenMP has no team, and one thread does it all. */
#ifdef __GNUC__
#define TAKE(number) __atomic_fetch_add(&(number), 1, __ATOMIC_RELAXED)
#define SET(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELAXED)
#else
#define TAKE(number) ((number)++)
#define SET(place, value) ((place) = (value))
#endif

static void take_part(void *given) {
    job *all = given;
    for (;;) {
        uint64_t piece = TAKE(all->taken);
        if (piece >= all->pieces) return;
        uint64_t low = all->blocks * piece / all->pieces, high = all->blocks * (piece + 1) / all->pieces;
        size_t start = (size_t)low * all->block_size;
        size_t stop = high == all->blocks ? all->out_size : (size_t)high * all->block_size;
        uint64_t offset;
        endor_status status = endor_decode(
            all->target, all->tensor, all->parts, all->first + low, all->first + high, all->out + start, stop - start,
            all->flags, &offset);
        if (status != ENDOR_OK) SET(all->status, (int)status);
    }
}

endor_status endor_decode_by(
    endor_start start, unsigned threads, uint64_t pieces, endor_target target, const endor_tensor *tensor,
    const endor_parts *parts, uint64_t first, uint64_t stop, void *out, size_t out_size, int flags) {
    size_t block_size = (size_t)ENDOR_BLOCK * tensor->encoding.itemsize;
    job all = {target, tensor, parts, first, stop - first, pieces, out, out_size, block_size, flags, 0, ENDOR_OK};
    if (stop <= first || out_size > (stop - first) * block_size || out_size <= (stop - first - 1) * block_size)
        return ENDOR_ARGUMENT;
#ifdef __GNUC__
    start(take_part, &all, threads, 0);
#else
    (void)start, (void)threads;
    take_part(&all);
#endif
    return (endor_status)all.status;
}
