// The engine of threads: every CUDA thread of a block is a thread of the operating system, so that
// ThreadSanitizer sees accesses that nothing orders, and AddressSanitizer sees stray ones. What
// orders threads here is what orders them on the device and no more: a barrier for the block, a
// lock of its own for each warp. Blocks run one after the other. The schedule is the operating
// system's.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "control.h"
#include "engine.h"

namespace emulation {

thread_local Thread* current = nullptr;

namespace {

// Who waits for so long waits for ever: the fibers' engine then says for whom.
constexpr std::chrono::seconds kPatience(20);

// Lets `count` threads through when all have come. The last one calls `complete` first.
class Gate {
  public:
    explicit Gate(size_t count) : count_(count) {}

    template <class Complete>
    void pass(Complete complete) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (++waiting_ == count_) {
            waiting_ = 0;
            ++generation_;
            opened_.notify_all();
            complete();
            return;
        }
        const size_t generation = generation_;
        opened_.wait(lock, [&] { return generation_ != generation; });
    }

  private:
    std::mutex mutex_;
    std::condition_variable opened_;
    const size_t count_;
    size_t waiting_ = 0;
    size_t generation_ = 0;
};

// A warp: its lanes' states change under its lock.
struct Warp {
    std::mutex mutex;
    std::condition_variable changed;
};

// Barriers take turns between two: who leaves one late must not be ordered, by its lock, after what
// others did before they came to the next.
struct Turn {
    std::mutex mutex;
    std::condition_variable changed;
    size_t waiting = 0;
    size_t generation = 0;
};

struct Engine {
    std::vector<Thread> threads;
    std::vector<size_t> passed;  // barriers, by each thread
    std::vector<std::unique_ptr<Warp>> warps;
    Turn turns[2];
    std::atomic<size_t> returned{0};
    std::atomic<bool> failed{false};  // waiting makes no sense any more
    std::mutex error_mutex;
    std::exception_ptr error;  // the first one
};

Engine engine;

// Ends the block: everyone who waits stops waiting.
void fail(std::exception_ptr error) {
    {
        const std::lock_guard<std::mutex> lock(engine.error_mutex);
        if (!engine.error) engine.error = error;
    }
    engine.failed = true;
    for (Turn& turn : engine.turns) {
        const std::lock_guard<std::mutex> lock(turn.mutex);
        turn.changed.notify_all();
    }
    for (const auto& warp : engine.warps) {
        const std::lock_guard<std::mutex> lock(warp->mutex);
        warp->changed.notify_all();
    }
}

// The barrier that the running thread comes to next.
Turn& next_turn() {
    return engine.turns[engine.passed[current->rank] % 2];
}

struct Abandoned {};  // thrown to leave a kernel after a failure elsewhere

// With the turn's lock held: opens the barrier if everyone has come or returned.
void settle_barrier(Turn& turn) {
    const size_t count = engine.threads.size();
    if (turn.waiting == 0 || turn.waiting + engine.returned < count) return;
    if (engine.returned > 0)
        throw Violation("barrier divergence: a thread waits at a barrier, another has returned");
    std::vector<Thread*> all;
    for (Thread& thread : engine.threads) all.push_back(&thread);
    complete_barrier(all.data(), count);
    turn.waiting = 0;
    ++turn.generation;
    turn.changed.notify_all();
}

// With the warp's lock held: completes the operation with this mask if all its lanes have come.
void settle_warp(Warp& warp, unsigned number, unsigned mask) {
    Thread* lanes[kWarp];
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        const size_t rank = size_t{number} * kWarp + lane;
        lanes[lane] = rank < engine.threads.size() ? &engine.threads[rank] : nullptr;
        const Thread* const thread = lanes[lane];
        if (!(mask >> lane & 1) || thread == nullptr || thread->state == State::kReturned) continue;
        if (thread->state != State::kInWarp || thread->mask != mask) return;
    }
    complete_warp(lanes, mask);
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (mask >> lane & 1 && lanes[lane] != nullptr && lanes[lane]->state == State::kInWarp)
            lanes[lane]->state = State::kReady;
    }
    warp.changed.notify_all();
}

void mark_returned() {
    Thread& self = *current;
    Warp& warp = *engine.warps[self.warp()];
    {
        const std::lock_guard<std::mutex> lock(warp.mutex);
        self.state = State::kReturned;
        const size_t first = size_t{self.warp()} * kWarp;
        for (size_t rank = first; rank < first + kWarp && rank < engine.threads.size(); ++rank) {
            const Thread& other = engine.threads[rank];
            if (other.state == State::kInWarp) settle_warp(warp, self.warp(), other.mask);
        }
    }
    Turn& turn = next_turn();
    const std::lock_guard<std::mutex> lock(turn.mutex);
    ++engine.returned;
    settle_barrier(turn);
}

// What each thread does for one block.
void run_thread(const Kernel& kernel, unsigned rank) {
    Thread& self = engine.threads[rank];
    self.rank = rank;
    self.index = {rank % block_size.x, rank / block_size.x % block_size.y,
                  rank / (block_size.x * block_size.y)};
    current = &self;
    try {
        kernel();
        mark_returned();
    } catch (const Abandoned&) {
    } catch (...) {
        fail(std::current_exception());
    }
}

}  // namespace

int barrier(Barrier kind, int predicate, const char* site) {
    Thread& self = *current;
    self.barrier = kind;
    self.value = predicate != 0;
    self.site = site;
    Turn& turn = next_turn();
    ++engine.passed[self.rank];
    std::unique_lock<std::mutex> lock(turn.mutex);
    ++turn.waiting;
    const size_t generation = turn.generation;
    settle_barrier(turn);
    if (!turn.changed.wait_for(lock, kPatience,
                               [&] { return turn.generation != generation || engine.failed; }))
        throw Violation(std::string("stuck: a thread waits in vain at ") + site);
    if (turn.generation == generation) throw Abandoned();
    return static_cast<int>(self.result);
}

uint64_t warp(WarpOperation operation, unsigned mask, uint64_t value, unsigned source,
              const char* site) {
    Thread& self = *current;
    Warp& warp = *engine.warps[self.warp()];
    std::unique_lock<std::mutex> lock(warp.mutex);
    self.operation = operation;
    self.mask = mask;
    self.value = value;
    self.source = source;
    self.site = site;
    self.state = State::kInWarp;
    if (!(mask >> self.lane() & 1))
        throw Violation("shuffle without participation: " + describe(self) +
                        ", which does not hold its own lane");
    settle_warp(warp, self.warp(), mask);
    if (!warp.changed.wait_for(lock, kPatience,
                               [&] { return self.state != State::kInWarp || engine.failed; }))
        throw Violation("stuck: " + describe(self));
    if (self.state == State::kInWarp) throw Abandoned();
    return self.result;
}

void interleave() {}

unsigned active_mask() {
    return 1u << current->lane();
}

void run_grid(const Kernel& kernel, dim3 grid, dim3 block) {
    const size_t count = size_t{block.x} * block.y * block.z;
    engine.threads.assign(count, Thread{});
    engine.warps.clear();
    for (size_t first = 0; first < count; first += kWarp)
        engine.warps.push_back(std::make_unique<Warp>());
    engine.failed = false;
    engine.error = nullptr;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    uint64_t number = 0;
    const auto start_block = [&] {
        if (engine.failed || number == blocks) return;
        engine.returned = 0;
        for (Turn& turn : engine.turns) turn.waiting = 0;
        engine.passed.assign(count, 0);
        for (Thread& thread : engine.threads) thread.state = State::kReady;
        const auto plane = uint64_t{grid.x} * grid.y;
        begin_block({static_cast<unsigned>(number % grid.x),
                     static_cast<unsigned>(number % plane / grid.x),
                     static_cast<unsigned>(number / plane)});
    };
    start_block();
    Gate gate(count);
    std::vector<std::thread> threads;
    for (unsigned rank = 0; rank < count; ++rank) {
        threads.emplace_back([&, rank] {
            for (uint64_t i = 0; i < blocks; ++i) {
                if (engine.failed) break;  // the gate orders this after every change
                run_thread(kernel, rank);
                gate.pass([&] {
                    ++number;
                    start_block();
                });
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    if (engine.error) std::rethrow_exception(engine.error);
}

}  // namespace emulation

void emulation_set_schedule(uint64_t) {}
