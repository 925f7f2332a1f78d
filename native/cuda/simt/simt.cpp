/* Fibers, and the scheduler that takes one of them at random. */
#include "simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ASAN 1
#endif
#endif
#ifdef ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

const unsigned WARP = 32, MOST_LANES = 256, SHARED = 48 << 10, STACK = 256 << 10;

uint64_t state = 1, seeded = 1;

unsigned random_below(unsigned count) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64 */
    return static_cast<unsigned>((state >> 32) % count);
}

[[noreturn]] void fail(const char *what) {
    fprintf(stderr, "simt: %s (CTA %u, lane %u, seed %llu)\n", what, simt::cta.x, simt::lane.x, static_cast<unsigned long long>(seeded));
    abort();
}

/* A place where lanes meet: a warp or the CTA. */
struct meeting {
    unsigned members, there, any;
    simt::operation which;
    unsigned values[WARP], results[WARP];
};

struct fiber {
    ucontext_t context;
    char *stack;
    void *fake_stack;
    bool done;
};

fiber fibers[MOST_LANES];
ucontext_t scheduler;
[[maybe_unused]] void *scheduler_fake_stack;
[[maybe_unused]] const void *scheduler_stack;
[[maybe_unused]] size_t scheduler_stack_size;
meeting all, warps[MOST_LANES / WARP];
std::vector<unsigned> runnable;
void (*running)(const void *);
const void *running_with;

void to_scheduler(fiber &from) {
#ifdef ASAN
    __sanitizer_start_switch_fiber(from.done ? nullptr : &from.fake_stack, scheduler_stack, scheduler_stack_size);
#endif
    swapcontext(&from.context, &scheduler);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(from.fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

void to_fiber(fiber &to) {
#ifdef ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake_stack, to.stack, STACK);
#endif
    swapcontext(&scheduler, &to.context);
#ifdef ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void body() {
    fiber &self = fibers[simt::lane.x];
#ifdef ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    running(running_with);
    fibers[simt::lane.x].done = true;
    to_scheduler(self);
}

/* Lets the others go on; they come back when they are made runnable. */
void wait() {
    unsigned self = simt::lane.x;
    to_scheduler(fibers[self]);
}

/* Whether this lane is the last to come; otherwise it has waited for that one. */
bool meet(meeting &place, simt::operation which) {
    if (place.there > 0 && place.which != which) fail("lanes meet that do not do the same");
    place.which = which;
    if (++place.there == place.members) return true;
    wait();
    return false;
}

/* All members but this one go on. */
void release(meeting &place, unsigned first) {
    place.there = 0;
    for (unsigned i = first; i < first + place.members; i++)
        if (i != simt::lane.x) runnable.push_back(i);
}

void run_cta(unsigned lanes) {
    all = meeting{};
    all.members = lanes;
    runnable.clear();
    for (unsigned i = 0; i < lanes; i++) {
        fiber &one = fibers[i];
        one.done = false;
        one.fake_stack = nullptr;
        getcontext(&one.context);
        one.context.uc_stack.ss_sp = one.stack;
        one.context.uc_stack.ss_size = STACK;
        one.context.uc_link = nullptr;
        makecontext(&one.context, body, 0);
        if (i % WARP == 0) warps[i / WARP] = meeting{}, warps[i / WARP].members = WARP;
        runnable.push_back(i);
    }
    while (!runnable.empty()) {
        unsigned k = random_below(static_cast<unsigned>(runnable.size())), next = runnable[k];
        runnable[k] = runnable.back();
        runnable.pop_back();
        simt::lane.x = next;
        to_fiber(fibers[next]);
    }
    for (unsigned i = 0; i < lanes; i++)
        if (!fibers[i].done) fail("a lane waits for others that have left");
}

} // namespace

alignas(16) uint4 endor_shared[SHARED / 16];

namespace simt {

position lane, cta;

void seed(uint64_t number) {
    seeded = state = number != 0 ? number : 1;
}

int barrier(operation which, int value) {
    all.any |= value != 0;
    if (meet(all, which)) {
        all.results[0] = all.any;
        all.any = 0;
        release(all, 0);
    }
    return static_cast<int>(all.results[0]);
}

unsigned exchange(operation which, unsigned mask, unsigned value, unsigned number) {
    if (mask != 0xFFFFFFFFu) fail("a warp operation of some lanes only");
    meeting &warp = warps[lane.x / WARP];
    unsigned self = lane.x % WARP;
    warp.values[self] = value;
    if (meet(warp, which)) {
        memcpy(warp.results, warp.values, sizeof warp.results);
        release(warp, lane.x - self);
    }
    if (which == SHUFFLE) return warp.results[number % WARP];
    return warp.results[self >= number ? self - number : self];
}

void launch(void (*kernel)(const void *), const void *arguments, unsigned ctas, unsigned lanes, unsigned shared) {
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> guard(one_at_a_time);
    if (lanes % WARP != 0 || lanes > MOST_LANES || shared > SHARED) fail("a launch that no device would take");
    for (unsigned i = 0; i < lanes; i++)
        if (fibers[i].stack == nullptr) {
            void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (stack == MAP_FAILED) fail("no memory for stacks");
            fibers[i].stack = static_cast<char *>(stack);
        }
    running = kernel;
    running_with = arguments;
    std::vector<unsigned> order(ctas);
    std::iota(order.begin(), order.end(), 0u);
    for (unsigned i = ctas; i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
    for (unsigned number : order) {
        cta.x = number;
        memset(endor_shared, static_cast<int>(random_below(256)), SHARED);
#ifdef ASAN
        ASAN_POISON_MEMORY_REGION(reinterpret_cast<char *>(endor_shared) + shared, SHARED - shared);
#endif
        run_cta(lanes);
#ifdef ASAN
        ASAN_UNPOISON_MEMORY_REGION(endor_shared, SHARED);
#endif
    }
}

} // namespace simt
