// The engine of fibers: one operating system thread runs the CUDA threads of a block in turn, each
// on a stack of its own, from one point where it must wait to the next. Which one goes on is drawn
// from a seed, so that an order which needs a barrier that is missing soon comes up, and comes up
// again with the same seed. When nobody can go on, the block is stuck and the rule broken is named.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <exception>
#include <map>
#include <utility>
#include <vector>

#include "control.h"
#include "engine.h"
#include "race.h"

namespace emulation {

Thread* current = nullptr;

namespace {

constexpr size_t kStackBytes = 128 << 10;

// The scheduler's own stack, or that of one CUDA thread. Contexts start with ucontext and then
// switch by _setjmp and _longjmp, which make no system call.
struct Fiber {
    jmp_buf where;
    ucontext_t start;
    bool started;
    race::Fiber seen;  // as ThreadSanitizer sees it
};

struct Engine {
    std::vector<Thread> threads;
    std::vector<Fiber> fibers;  // of the first threads.size() or more threads; kept between blocks
    std::vector<unsigned> ready;
    Fiber scheduler = {{}, {}, true, {}};
    unsigned char* stacks = nullptr;
    const Kernel* kernel = nullptr;
    std::exception_ptr error;
    uint64_t seed = 0;
    uint64_t random_state = 1;
    unsigned at_barrier = 0;
    unsigned returned = 0;
    // What orders accesses, by their addresses.
    char block_started, block_ended;
    char barriers[2];  // in turn, so that who is late does not see who is early at the next
    unsigned barrier_number = 0;
    std::map<std::pair<unsigned, unsigned>, std::array<char, 2>> warps;  // of (warp, mask), in turn
    std::vector<std::map<unsigned, unsigned>> warp_numbers;  // of each thread's operations by mask
};

Engine engine;

// xorshift64*
uint64_t random_number() {
    uint64_t& state = engine.random_state;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1dull;
}

__attribute__((noinline)) void switch_fiber(Fiber& from, Fiber& to) {
    race::switch_to(to.seen);
    if (race::kWatched) {  // ThreadSanitizer takes _longjmp for its own
        swapcontext(&from.start, &to.start);
        return;
    }
    if (_setjmp(from.where) != 0) return;
    if (to.started) _longjmp(to.where, 1);
    to.started = true;
    setcontext(&to.start);
}

void leave() {
    switch_fiber(engine.fibers[current->rank], engine.scheduler);
}

// What each fiber runs: the kernel, once for every block.
void body() {
    for (;;) {
        race::acquire(&engine.block_started);
        try {
            (*engine.kernel)();
        } catch (...) {
            engine.error = std::current_exception();
        }
        current->state = State::kReturned;
        ++engine.returned;
        race::release(&engine.block_ended);
        leave();
    }
}

void make_fibers(size_t count) {
    if (engine.stacks == nullptr) {
        void* const stacks = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) throw std::bad_alloc();
        engine.stacks = static_cast<unsigned char*>(stacks);
        engine.fibers.reserve(kMaxThreads);  // a running fiber must not move
    }
    while (engine.fibers.size() < count) {
        unsigned char* const stack = engine.stacks + engine.fibers.size() * kStackBytes;
        Fiber& fiber = engine.fibers.emplace_back();
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = stack;
        fiber.start.uc_stack.ss_size = kStackBytes;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, body, 0);
        fiber.seen = race::make();
    }
}

void wake(Thread& thread) {
    thread.state = State::kReady;
    engine.ready.push_back(thread.rank);
}

void lanes_of(unsigned warp, Thread* (&lanes)[kWarp]) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        const size_t rank = size_t{warp} * kWarp + lane;
        lanes[lane] = rank < engine.threads.size() ? &engine.threads[rank] : nullptr;
    }
}

// Completes the warp operation with this mask if every lane that has not returned waits for it.
void try_warp(unsigned warp, unsigned mask) {
    Thread* lanes[kWarp];
    lanes_of(warp, lanes);
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        const Thread* const thread = lanes[lane];
        if (!(mask >> lane & 1) || thread == nullptr || thread->state == State::kReturned) continue;
        if (thread->state != State::kInWarp || thread->mask != mask) return;
    }
    complete_warp(lanes, mask);
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (mask >> lane & 1 && lanes[lane] != nullptr && lanes[lane]->state == State::kInWarp)
            wake(*lanes[lane]);
    }
}

// A thread that returned may have been the last one awaited.
void retry_warp(unsigned warp) {
    Thread* lanes[kWarp];
    lanes_of(warp, lanes);
    for (Thread* thread : lanes) {
        if (thread != nullptr && thread->state == State::kInWarp) try_warp(warp, thread->mask);
    }
}

void complete_block_barrier() {
    std::vector<Thread*> all;
    for (Thread& thread : engine.threads) all.push_back(&thread);
    complete_barrier(all.data(), all.size());
    engine.at_barrier = 0;
    ++engine.barrier_number;
    for (Thread* thread : all) wake(*thread);
}

[[noreturn]] void report_stuck() {
    const Thread* first = nullptr;  // that waits, in a warp operation if there is one
    for (const Thread& thread : engine.threads) {
        if (thread.state == State::kReturned) continue;
        if (first == nullptr || (first->state != State::kInWarp && thread.state == State::kInWarp))
            first = &thread;
    }
    if (first->state == State::kInWarp) {
        Thread* lanes[kWarp];
        lanes_of(first->warp(), lanes);
        for (unsigned lane = 0; lane < kWarp; ++lane) {
            const Thread* const other = lanes[lane];
            if (!(first->mask >> lane & 1) || other == nullptr) continue;
            if (other->state != State::kInWarp || other->mask != first->mask)
                throw Violation("warp operation without all of its lanes: " + describe(*first) +
                                ", but " + describe(*other));
        }
    }
    for (const Thread& other : engine.threads) {
        if (other.state == State::kReturned)
            throw Violation("barrier divergence: " + describe(*first) + ", but " + describe(other));
    }
    throw Violation("stuck: " + describe(*first));
}

void run_block(uint3 block) {
    const size_t count = size_t{block_size.x} * block_size.y * block_size.z;
    begin_block(block);
    engine.threads.assign(count, Thread{});
    engine.ready.clear();
    engine.at_barrier = engine.returned = 0;
    if (race::kWatched) engine.warp_numbers.assign(count, {});
    race::release(&engine.block_started);
    for (unsigned rank = 0; rank < count; ++rank) {
        Thread& thread = engine.threads[rank];
        thread.rank = rank;
        thread.index = {rank % block_size.x, rank / block_size.x % block_size.y,
                        rank / (block_size.x * block_size.y)};
        wake(thread);
    }
    for (size_t next = 0; engine.returned < count;) {
        if (engine.at_barrier == count) complete_block_barrier();
        if (next == engine.ready.size()) report_stuck();
        if (engine.seed != 0) {
            const size_t other = next + random_number() % (engine.ready.size() - next);
            std::swap(engine.ready[next], engine.ready[other]);
        }
        const unsigned rank = engine.ready[next++];
        if (next >= 4096) {
            engine.ready.erase(engine.ready.begin(), engine.ready.begin() + next);
            next = 0;
        }
        current = &engine.threads[rank];
        switch_fiber(engine.scheduler, engine.fibers[rank]);
        const Thread& thread = *current;
        current = nullptr;
        if (engine.error) std::rethrow_exception(std::exchange(engine.error, nullptr));
        if (thread.state == State::kReturned) retry_warp(thread.warp());
        if (thread.state == State::kInWarp) try_warp(thread.warp(), thread.mask);
    }
    race::acquire(&engine.block_ended);
    end_block();
}

}  // namespace

int barrier(Barrier kind, int predicate, const char* site) {
    current->barrier = kind;
    current->value = predicate != 0;
    current->site = site;
    current->state = State::kAtBarrier;
    ++engine.at_barrier;
    char* const order = &engine.barriers[engine.barrier_number % 2];
    race::release(order);
    leave();
    race::acquire(order);
    return static_cast<int>(current->result);
}

uint64_t warp(WarpOperation operation, unsigned mask, uint64_t value, unsigned source,
              const char* site) {
    Thread& self = *current;
    self.operation = operation;
    self.mask = mask;
    self.value = value;
    self.source = source;
    self.site = site;
    self.state = State::kInWarp;
    if (!(mask >> self.lane() & 1))
        throw Violation("shuffle without participation: " + describe(self) +
                        ", which does not hold its own lane");
    char* order = nullptr;
    if (race::kWatched) {
        const unsigned number = engine.warp_numbers[self.rank][mask]++;
        order = &engine.warps[{self.warp(), mask}][number % 2];
    }
    race::release(order);
    leave();
    race::acquire(order);
    return self.result;
}

void interleave() {
    if (engine.seed == 0 || random_number() % 4 != 0) return;
    wake(*current);
    leave();
}

unsigned active_mask() {
    Thread* lanes[kWarp];
    lanes_of(current->warp(), lanes);
    unsigned mask = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (lanes[lane] != nullptr && lanes[lane]->state == State::kReady) mask |= 1u << lane;
    }
    return mask;
}

bool own_stack(const void* address) {
    const unsigned char* const stack = engine.stacks + current->rank * kStackBytes;
    return address >= stack && address < stack + kStackBytes;
}

void stop(const std::string& message) {
    engine.error = std::make_exception_ptr(Violation(message));
    leave();
    __builtin_unreachable();  // the scheduler gives this block up
}

void run_grid(const Kernel& kernel, dim3 grid, dim3 block) {
    engine.kernel = &kernel;
    engine.random_state = engine.seed * 0x9e3779b97f4a7c15ull | 1;
    try {
        engine.scheduler.seen = race::running();
        make_fibers(size_t{block.x} * block.y * block.z);
        const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
        // Blocks have no order either: start anywhere and go round with a stride that meets all.
        const uint64_t start = engine.seed == 0 ? 0 : random_number() % blocks;
        const uint64_t step = engine.seed % 2 == 0 ? 1 : blocks - 1;
        for (uint64_t i = 0, number = start; i < blocks; ++i, number = (number + step) % blocks) {
            const auto plane = uint64_t{grid.x} * grid.y;
            run_block({static_cast<unsigned>(number % grid.x),
                       static_cast<unsigned>(number % plane / grid.x),
                       static_cast<unsigned>(number / plane)});
        }
    } catch (...) {
        current = nullptr;
        for (const Fiber& fiber : engine.fibers) race::drop(fiber.seen);
        engine.fibers.clear();  // some stopped halfway through the kernel
        throw;
    }
}

}  // namespace emulation

void emulation_set_schedule(uint64_t seed) {
    emulation::engine.seed = seed;
    emulation_set_poison(seed % 2 == 0 ? 0xff : 0xa5);
}
