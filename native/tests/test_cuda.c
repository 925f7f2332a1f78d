/* The CUDA kernels, run lane by lane on this processor (cuda/simt), against the C decoder: the same elements, the same fault.
 *
 * `test_cuda DRIVER ROUNDS [FILE...]`: what it decodes is made from those files, inputs of the fuzzer, and then from random bytes;
 * some tensors at a time, in buffers of exactly their size, of any alignment. Exits with 0, or says what differs and aborts.
 */
#include "../fuzz/parts.h"
#include "random.h"

#include <endor_cuda.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

#define MOST_JOBS 40 /* more than go into one launch */

/* Memory that begins `offset` bytes behind a multiple of 16, and nothing of which may be touched but its bytes: where that
 * is a multiple of 8 the sanitizer can tell also what lies before. */
typedef struct memory {
    uint8_t *whole, *at;
    size_t size;
} memory;

static memory take_memory(size_t size, unsigned offset) {
    memory m = {malloc(offset + size), NULL, size};
    CHECK(m.whole != NULL && (uintptr_t)m.whole % 16 == 0);
    m.at = m.whole + offset;
    memset(m.at, 0xA5, size);
    ASAN_POISON_MEMORY_REGION(m.whole, offset / 8 * 8);
    return m;
}

static void give_back(memory m) {
    ASAN_UNPOISON_MEMORY_REGION(m.whole, (size_t)(m.at - m.whole));
    free(m.whole);
}

/* A request, and how the C decoder ends it. */
typedef struct sample {
    request asked;
    memory parts[5], expected, out;
    endor_status status;
    uint64_t offset, word, checked;
} sample;

static unsigned any_offset(void) {
    static const unsigned offsets[] = {0, 0, 0, 8, 24, 1, 2, 4, 7, 12};
    return offsets[any() % LENGTH(offsets)];
}

static endor_parts parts_of(const sample *s) {
    uint8_t *at[5];
    for (int k = 0; k < 5; k++) at[k] = s->parts[k].at;
    return as_parts(at, s->asked.sizes);
}

/* Gives a patch the rank of the one before it. */
static void repeat_rank(const endor_tensor *tensor) {
    if (tensor->patches < 2) return;
    uint8_t *patch = part[4] + 3 * (any() % (tensor->patches - 1));
    memcpy(patch + 3, patch, 2);
}

static sample take_sample(const uint8_t *data, size_t size) {
    input in = {data, data + size};
    sample s = {.asked = take_request(&in)};
    unsigned offset = any_offset();
    if (any() % 16 == 0) repeat_rank(&s.asked.tensor);
    for (int k = 0; k < 5; k++) {
        s.parts[k] = take_memory(s.asked.sizes[k], any() % 4 ? offset : any_offset());
        memcpy(s.parts[k].at, part[k], s.asked.sizes[k]);
    }
    s.expected = take_memory(s.asked.out_size, 0);
    s.out = take_memory(s.asked.out_size, any_offset());
    endor_parts parts = parts_of(&s);
    s.status = endor_decode(
        ENDOR_SCALAR, &s.asked.tensor, &parts, s.asked.first, s.asked.stop, s.expected.at, s.asked.out_size, 0, &s.offset);
    return s;
}

static endor_cuda_job job_of(sample *s) {
    return (endor_cuda_job){
        .tensor = s->asked.tensor,
        .parts = parts_of(s),
        .first = s->asked.first,
        .stop = s->asked.stop,
        .out = s->out.at,
        .out_size = s->asked.out_size,
        .status = &s->word,
    };
}

static void check_sample(const sample *s) {
    uint64_t block, same;
    endor_status status = endor_cuda_fault(s->word, &block);
    if (status != s->status) fprintf(stderr, "found %d, expected %d\n", (int)status, (int)s->status);
    CHECK(status == s->status);
    CHECK(endor_cuda_fault(s->checked, &same) == status && same == block);
    if (status == ENDOR_OK) CHECK(memcmp(s->out.at, s->expected.at, s->asked.out_size) == 0);
    /* Where the offset tells the block, it is this one. */
    if (block != UINT64_MAX) CHECK(block < endor_blocks(s->asked.tensor.numel));
    if (status == ENDOR_E3) CHECK(block == s->offset);
    if (status == ENDOR_B6) CHECK(8 * (block + 1) == s->offset);
}

/* Samples in one call: decoded, and only checked. */
static void check_samples(endor_cuda *cuda, sample *samples, size_t count) {
    static endor_cuda_job jobs[2 * MOST_JOBS];
    int result;
    for (size_t i = 0; i < count; i++) {
        jobs[i] = jobs[count + i] = job_of(&samples[i]);
        jobs[count + i].out = NULL;
        jobs[count + i].out_size = 0;
        jobs[count + i].status = &samples[i].checked;
    }
    CHECK(endor_cuda_decode(cuda, 0, jobs, 2 * count, NULL, &result) == ENDOR_OK && result == 0);
    for (size_t i = 0; i < count; i++) check_sample(&samples[i]);
}

static void forget(sample *s) {
    for (int k = 0; k < 5; k++) give_back(s->parts[k]);
    give_back(s->expected);
    give_back(s->out);
}

/* Collects samples, and checks them together, however many fit. Those that make no sense are refused alone. */
typedef struct batch {
    endor_cuda *cuda;
    sample samples[MOST_JOBS];
    size_t count, wanted;
    unsigned long done, faults;
} batch;

static void finish(batch *b) {
    check_samples(b->cuda, b->samples, b->count);
    for (size_t i = 0; i < b->count; i++) forget(&b->samples[i]);
    b->count = 0;
    b->wanted = any() % 3 ? 1 + any() % 3 : MOST_JOBS;
}

static void add(batch *b, const uint8_t *data, size_t size) {
    sample *s = &b->samples[b->count];
    *s = take_sample(data, size);
    b->done++;
    b->faults += s->status != ENDOR_OK;
    if (s->status == ENDOR_ARGUMENT) {
        endor_cuda_job job = job_of(s);
        int result;
        CHECK(endor_cuda_decode(b->cuda, 0, &job, 1, NULL, &result) == ENDOR_ARGUMENT && s->word == 0);
        forget(s);
        return;
    }
    if (++b->count >= b->wanted) finish(b);
}

/* A tensor of one element, which is zero. */
static endor_cuda_job small_job(uint8_t part[64], uint8_t out[1], uint64_t *word) {
    return (endor_cuda_job){
        .tensor = {.encoding = raw(1), .numel = 1},
        .parts = {part, 0, part, 64, part, 64, NULL, 0, NULL, 0},
        .stop = 1,
        .out = out,
        .out_size = 1,
        .status = word,
    };
}

static void check_arguments(endor_cuda *cuda) {
    uint8_t part[64] = {0}, out[1] = {1};
    uint64_t word = 0, block;
    int result;
    endor_cuda_job job = small_job(part, out, &word);
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_OK && word == 0 && out[0] == 0);
    CHECK(endor_cuda_decode(cuda, 0, &job, 0, NULL, &result) == ENDOR_OK);
    job.status = NULL; /* a fault is not told then */
    part[63] = 1;
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_OK && word == 0);
    job.status = (uint64_t *)(void *)((uint8_t *)&word + 1);
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_ARGUMENT);
    job.status = &word;
    job.out_size = 2;
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_ARGUMENT);
    job.out_size = 1;
    job.parts.values_size = 64;
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_ARGUMENT);
    job.parts.values_size = 0;
    CHECK(setenv("ENDOR_SIMT_FAIL", "cuLaunchKernel", 1) == 0);
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_DRIVER && result == 719);
    CHECK(strcmp(endor_cuda_message(cuda, result), "unspecified launch failure") == 0);
    CHECK(endor_cuda_message(cuda, 12345)[0] != 0);
    CHECK(unsetenv("ENDOR_SIMT_FAIL") == 0);
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_OK);
    CHECK(endor_cuda_fault(word, &block) == ENDOR_B3 && block == UINT64_MAX);
    CHECK(endor_cuda_fault(1, &block) == ENDOR_ARGUMENT && endor_cuda_fault(UINT64_MAX, &block) == ENDOR_ARGUMENT);
}

static int refused(endor_cuda *cuda, const endor_cuda_job *job) {
    int result;
    return endor_cuda_decode(cuda, 0, job, 1, NULL, &result) == ENDOR_ARGUMENT && result == 0;
}

/* Sizes that are not those of the parts, buffers that are not there, and buffers that lie in one another. */
static void check_memory(endor_cuda *cuda) {
    static const uint64_t changes[] = {(uint64_t)-1, (uint64_t)-64, 1, 64, UINT64_C(1) << 32, (uint64_t)1 << 63};
    uint64_t words[32] = {0};
    uint8_t *part = (uint8_t *)words, *out = part + 64;
    const endor_cuda_job good = small_job(part, out, words + 10);
    endor_cuda_job job = good;
    int result;
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_OK);
    for (size_t i = 0; i < LENGTH(changes); i++)
        for (int which = 0; which < 6; which++) {
            job = good;
            size_t *const sizes[6] = {
                &job.parts.values_size, &job.parts.bitmap_size, &job.parts.index_size, &job.parts.bases_size,
                &job.parts.patches_size, &job.out_size};
            *sizes[which] += (size_t)changes[i];
            CHECK(refused(cuda, &job));
        }
    job = good, job.parts.bitmap = NULL;
    CHECK(refused(cuda, &job));
    job = good, job.parts.index = NULL;
    CHECK(refused(cuda, &job));
    job = good, job.parts.index = (const uint8_t *)(UINTPTR_MAX - 62);
    CHECK(refused(cuda, &job));
    job = good, job.out = NULL;
    CHECK(refused(cuda, &job)); /* it would only be checked */
    for (size_t i = 0; i < 64; i += 21) {
        job = good, job.out = part + i;
        CHECK(refused(cuda, &job));
    }
    job = good, job.status = words + 7;
    CHECK(refused(cuda, &job));
    job = good, job.out = words + 10;
    CHECK(refused(cuda, &job));
    job = good, job.parts.values = part + 64; /* nothing is read there */
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_OK);
    CHECK(words[10] == 0);
}

/* Contexts of the thread, and devices, of a driver that has two; kernels run on the second. */
static void check_devices(const char *driver) {
    uint8_t part[64] = {0}, out[1] = {1};
    uint64_t word = 0;
    int result;
    endor_cuda *cuda;
    endor_cuda_job job = small_job(part, out, &word);
    CHECK(setenv("ENDOR_SIMT_DEVICES", "2", 1) == 0 && setenv("ENDOR_SIMT_WITHOUT", "0", 1) == 0);
    CHECK(endor_cuda_open(driver, &cuda) == ENDOR_OK && endor_cuda_devices(cuda) == 2);
    CHECK(endor_cuda_current(cuda) == ENDOR_CUDA_CURRENT);
    CHECK(endor_cuda_load(cuda, ENDOR_CUDA_CURRENT, &result) == ENDOR_DRIVER && result == 201);
    CHECK(endor_cuda_load(cuda, 0, &result) == ENDOR_DRIVER && result == 209);
    CHECK(endor_cuda_load(cuda, 1, &result) == ENDOR_OK && result == 0);
    CHECK(endor_cuda_load(cuda, 2, &result) == ENDOR_ARGUMENT && endor_cuda_load(cuda, -2, &result) == ENDOR_ARGUMENT);
    CHECK(endor_cuda_decode(cuda, 2, &job, 1, NULL, &result) == ENDOR_ARGUMENT);
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_DRIVER && result == 209);
    CHECK(out[0] == 1);
    CHECK(endor_cuda_decode(cuda, 1, &job, 1, NULL, &result) == ENDOR_OK && out[0] == 0);
    CHECK(endor_cuda_current(cuda) == ENDOR_CUDA_CURRENT); /* as before */
    /* A stream of the other device: its context is another one. */
    CHECK(endor_cuda_decode(cuda, 1, &job, 1, (void *)((uintptr_t)1 << 32), &result) == ENDOR_DRIVER && result == 400);
    CHECK(endor_cuda_decode(cuda, 1, &job, 1, (void *)((uintptr_t)2 << 32), &result) == ENDOR_OK);
    CHECK(setenv("ENDOR_SIMT_WITHOUT", "1", 1) == 0);
    CHECK(endor_cuda_decode(cuda, ENDOR_CUDA_CURRENT, &job, 1, NULL, &result) == ENDOR_OK); /* that of the memory */
    CHECK(setenv("ENDOR_SIMT_FAIL", "cuPointerGetAttribute", 1) == 0);
    CHECK(endor_cuda_decode(cuda, ENDOR_CUDA_CURRENT, &job, 1, NULL, &result) == ENDOR_DRIVER && result == 201);
    CHECK(setenv("ENDOR_SIMT_FAIL", "cuCtxPushCurrent_v2", 1) == 0);
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_DRIVER && result == 201);
    endor_cuda_close(cuda);
    CHECK(endor_cuda_open(driver, &cuda) == ENDOR_OK);
    CHECK(setenv("ENDOR_SIMT_FAIL", "cuDevicePrimaryCtxRetain", 1) == 0);
    CHECK(endor_cuda_decode(cuda, 0, &job, 1, NULL, &result) == ENDOR_DRIVER && result == 101);
    endor_cuda_close(cuda);
    CHECK(unsetenv("ENDOR_SIMT_DEVICES") == 0 && unsetenv("ENDOR_SIMT_WITHOUT") == 0 && unsetenv("ENDOR_SIMT_FAIL") == 0);
}

static void check_opening(const char *driver) {
    static const char *const functions[] = {"cuInit", "cuDeviceGetCount", "cuLibraryLoadData", "cuLibraryGetKernel"};
    endor_cuda *cuda;
    CHECK(endor_cuda_open("/nowhere/libcuda.so", &cuda) == ENDOR_TARGET && cuda == NULL);
    CHECK(endor_cuda_open("libc.so.6", &cuda) == ENDOR_TARGET && cuda == NULL);
    for (size_t i = 0; i < LENGTH(functions); i++) {
        CHECK(setenv("ENDOR_SIMT_FAIL", functions[i], 1) == 0);
        CHECK(endor_cuda_open(driver, &cuda) == ENDOR_TARGET && cuda == NULL);
    }
    CHECK(unsetenv("ENDOR_SIMT_FAIL") == 0);
    endor_cuda_close(NULL);
}

/* Random bytes as an input that makes parts which are right, half of the time without a change, and a range that there is. */
static void make_sense(uint8_t *data) {
    uint8_t *choices = data + (data[0] % 2 ? 3 : 1);
    *choices = (uint8_t)((*choices & 0x41) | 0x04 | (any() % 4 ? 0x10 : 0x20) | (any() % 8 ? 0 : 0x08));
    uint8_t *pattern = choices + 1 + 2 + 2;
    if (any() % 2) pattern[32] = 0;
    if (any() % 4 == 0) memset(pattern, 0xFF, 16); /* no zeros at all */
}

int main(int count, char **arguments) {
    static uint8_t data[1 << 16];
    static batch b;
    CHECK(count >= 3);
    check_opening(arguments[1]);
    endor_cuda *cuda;
    CHECK(endor_cuda_open(arguments[1], &cuda) == ENDOR_OK);
    check_arguments(cuda);
    check_memory(cuda);
    check_devices(arguments[1]);
    b.cuda = cuda;
    b.wanted = 1;
    for (int i = 3; i < count; i++) {
        FILE *file = fopen(arguments[i], "rb");
        CHECK(file != NULL);
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        add(&b, data, size);
    }
    for (long round = strtol(arguments[2], NULL, 10); round > 0; round--) {
        size_t size = 64 + any() % 512;
        for (size_t i = 0; i < size; i++) data[i] = (uint8_t)(any() >> 32);
        if (any() % 4) make_sense(data);
        add(&b, data, size);
    }
    finish(&b);
    endor_cuda_close(cuda);
    printf("%lu tensors, %lu with a fault\n", b.done, b.faults);
    return 0;
}
