/* The kernels: one CTA for each block, and one for each tensor's ends. One kernel for each size of elements.
 *
 * A block takes two trips to memory: its index entries, bitmap and base; then its values, as soon as the index says where they
 * are, and while the bitmap is being counted. Values are copied to shared memory, so that what is checked is what is decoded,
 * and so that elements can be fetched from wherever their rank is.
 *
 * No thread leaves, and none comes to a barrier, because of what it has read itself: memory may change under it. The first
 * thread's findings are put into shared memory, and all go by them.
 */
#include "edges.cuh"
#include "positions.cuh"
#include "split.cuh"

extern __shared__ uint4 endor_shared[];

/* The head of shared memory. */
struct head {
    unsigned stored;      /* elements of the block */
    unsigned patch_count; /* patches of the block; if they are more than its elements, one more than those: enough for E-5 */
    uint64_t patch_first;
    unsigned base;
    unsigned places, patches; /* rules that the entries of each row break, or 0 */
    unsigned base_rule;       /* the same of the base */
    unsigned ones[WARPS];     /* bits of each warp's part of the bitmap */
};
static_assert(sizeof(head) <= ENDOR_CUDA_HEAD, "the head has its room");

/* Two neighbours of a row: from one to the other. B-5. */
struct span {
    uint64_t low, high;
    bool good;
};

static __device__ __forceinline__ span take_span(const uint8_t *row, uint64_t block, uint64_t last) {
    uint64_t low = load<uint64_t>(row + 8 * block), high = load<uint64_t>(row + 8 * block + 8);
    /* Entries are signed; as `last` is not negative, what is negative is too large here. */
    return {low, high, low <= high && high <= last};
}

template <unsigned SIZE>
static __device__ void decode_block(const endor_cuda_entry &job, uint64_t block) {
    head *shared = reinterpret_cast<head *>(endor_shared);
    uint4 *room = endor_shared + ENDOR_CUDA_HEAD / 16;
    uint8_t *joined = reinterpret_cast<uint8_t *>(room) + ENDOR_CUDA_STAGE(SIZE, job.group);
    uint64_t from = block * ENDOR_BLOCK, blocks = (job.numel + ENDOR_BLOCK - 1) / ENDOR_BLOCK;
    unsigned count = static_cast<unsigned>(job.numel - from < ENDOR_BLOCK ? job.numel - from : ENDOR_BLOCK);

    /* The first trip. */
    span ranks = {from, from + count, true}, patches = {0, 0, true};
    uint32_t word = 0;
    unsigned base = 0;
    if (job.has_bitmap) {
        ranks = take_span(job.index, block, job.stored);
        word = take_word(job.bitmap + block * (ENDOR_BLOCK / 8), count);
    }
    if (job.group != 0) {
        uint64_t row = job.has_bitmap ? 8 * roundup(blocks + 1, 8) : 0;
        patches = take_span(job.index + row, block, job.patch_count);
        base = job.bases[block];
    }
    /* Where there are more than a block has elements, it is not said where their end is: B-6. */
    unsigned stored = ranks.good && ranks.high - ranks.low <= count ? static_cast<unsigned>(ranks.high - ranks.low) : 0;

    /* The second. */
    staged values;
    unsigned skip = 0;
    if (job.group != 0) {
        skip = static_cast<unsigned>(ranks.low % 64);
        unsigned groups = stored > 0 ? (skip + stored + 63) / 64 : 0;
        uint64_t first = stored > 0 ? ranks.low / 64 * job.group : 0;
        values = stage<4>(room, job.values, job.values_size, first, groups * job.group);
    } else {
        uint64_t first = stored > 0 ? ranks.low * SIZE : 0;
        values = stage<SIZE>(room, job.values, job.values_size, first, stored * SIZE);
    }

    unsigned ones = __popc(word), before = sum_up_to(ones), warp = threadIdx.x / WARP;
    if (threadIdx.x % WARP == WARP - 1) shared->ones[warp] = before;
    before -= ones;
    if (threadIdx.x == 0) {
        uint64_t patch_count = patches.good ? patches.high - patches.low : 0;
        shared->stored = stored;
        shared->places = ranks.good ? ranks.high - ranks.low <= count ? 0 : ENDOR_B6 : ENDOR_B5;
        shared->patches = patches.good ? 0 : ENDOR_B5;
        shared->patch_first = patches.low;
        shared->patch_count = static_cast<unsigned>(patch_count <= stored ? patch_count : stored + 1);
        shared->base = base;
        unsigned most = (1u << job.exponent) - (1u << job.width);
        shared->base_rule = job.group != 0 && (base > most || (stored == 0 && base != 0)) ? ENDOR_E3 : 0;
    }
    int zero = __syncthreads_or(values.zero);

    unsigned all = 0;
#pragma unroll
    for (unsigned i = 0; i < WARPS; i++) {
        if (i < warp) before += shared->ones[i];
        all += shared->ones[i];
    }
    stored = shared->stored;
    unsigned rule = shared->places, order = rule == ENDOR_B6 ? BLOCK_ONES : BLOCK_RANKS;
    if (rule == 0 && job.has_bitmap && all != stored) rule = ENDOR_B6, order = BLOCK_ONES;
    if (rule == 0 && shared->patches != 0) rule = ENDOR_B5, order = BLOCK_PATCHES;
    if (rule == 0 && shared->base_rule != 0) rule = ENDOR_E3, order = BLOCK_BASE;
    if (rule != 0) {
        if (threadIdx.x == 0) tell(job, block + 1, order, rule);
        return;
    }

    const uint8_t *elements = reinterpret_cast<const uint8_t *>(room) + values.skew;
    if constexpr (SIZE <= 4) {
        if (job.group != 0) {
            base = shared->base;
            unsigned groups = stored > 0 ? (skip + stored + 63) / 64 : 0;
            join<SIZE>(job, elements, groups, base, joined);
            bool may = base == 0;
            __syncthreads();
            uint8_t *mine = joined + skip * SIZE;
            unsigned patch_count = shared->patch_count;
            if (patch_count > 0) {
                if (!apply_patches<SIZE>(job, block, shared->patch_first, patch_count, stored, base, mine, &may)) return;
                may = __syncthreads_or(may);
            }
            zero = may;
            elements = mine;
        }
    }
    if (zero && job.has_bitmap) {
        /* There may be a stored element that is zero: looked for one by one. */
        bool found = false;
#pragma unroll 1
        for (unsigned rank = threadIdx.x; rank < stored; rank += ENDOR_CUDA_THREADS)
            found |= element<SIZE>(elements, rank) == 0;
        if (found) tell(job, block + 1, BLOCK_ZERO, ENDOR_B10);
    }
    if (job.out == nullptr) return;
    uint8_t *out = job.out + (block - job.first) * (ENDOR_BLOCK * SIZE);
    if (job.has_bitmap)
        expand<SIZE>(word, before, elements, out, count);
    else
        copy<SIZE>(elements, out, count);
}

/* The job that this CTA works on: the last one that begins with it or before. */
template <unsigned SIZE>
static __device__ __forceinline__ void decode(const endor_cuda_table &table) {
    unsigned low = 0, high = table.count;
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (table.entries[middle].cta <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    const endor_cuda_entry &job = table.entries[low];
    unsigned number = blockIdx.x - job.cta;
    if (number == 0)
        check_edges<SIZE>(job);
    else
        decode_block<SIZE>(job, job.first + (number - 1));
}

/* CTAs that a multiprocessor is to hold, by registers: of small elements as many as 1536 threads are, which all devices since 8.0
 * can hold; of larger ones shared memory holds fewer. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define HELD 8
#else
#define HELD 12
#endif

extern "C" {
__global__ void __launch_bounds__(ENDOR_CUDA_THREADS, HELD) endor_decode_1(const __grid_constant__ endor_cuda_table table) {
    decode<1>(table);
}
__global__ void __launch_bounds__(ENDOR_CUDA_THREADS, HELD) endor_decode_2(const __grid_constant__ endor_cuda_table table) {
    decode<2>(table);
}
__global__ void __launch_bounds__(ENDOR_CUDA_THREADS) endor_decode_4(const __grid_constant__ endor_cuda_table table) {
    decode<4>(table);
}
__global__ void __launch_bounds__(ENDOR_CUDA_THREADS) endor_decode_8(const __grid_constant__ endor_cuda_table table) {
    decode<8>(table);
}
}
