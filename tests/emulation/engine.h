// What the CUDA vocabulary (cuda_emulation.h) asks of an engine, and what an engine asks of a
// kernel.
//
// Two engines exist. fibers.cpp runs the threads of a block as fibers of one operating system
// thread, one at a time, in an order drawn from a seed: deterministic, and it sees when threads
// wait for each other in vain. threads.cpp runs each as a thread of its own, for ThreadSanitizer
// and AddressSanitizer. Blocks run one after the other in both.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct uint3 {
    unsigned x, y, z;
};

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;

// A broken rule of CUDA, found while a kernel ran.
struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class Barrier { kPlain, kOr, kAnd, kCount };

enum class WarpOperation { kSync, kShuffle, kBallot, kMatch };

enum class State : uint8_t { kReady, kAtBarrier, kInWarp, kReturned };

// One CUDA thread. The fields below `state` describe what it waits for.
struct Thread {
    uint3 index;    // threadIdx
    unsigned rank;  // its number in the block
    State state;
    const char* site;         // "file:line operation"
    Barrier barrier;          // and the predicate in `value`
    WarpOperation operation;  //
    unsigned mask;            // lanes that take part
    unsigned source;          // kShuffle: the lane to read
    uint64_t value;           // what this thread brings
    uint64_t result;          // what it takes away

    unsigned lane() const { return rank % kWarp; }
    unsigned warp() const { return rank / kWarp; }
};

#ifdef MDCP_EMULATION_THREADS
extern thread_local Thread* current;
#else
extern Thread* current;
#endif
extern dim3 grid_size;
extern dim3 block_size;
extern uint3 block_index;
extern unsigned launch_number;  // changes with every launch

// Waits for all threads of the block; the result is that of __syncthreads_or, _and or _count.
int barrier(Barrier kind, int predicate, const char* site);

// Waits for the lanes of the mask, then hands each its result.
uint64_t warp(WarpOperation operation, unsigned mask, uint64_t value, unsigned source,
              const char* site);

// A point where another thread may run; called before every atomic operation.
void interleave();

// The lanes of the calling thread's warp that have not returned and are not waiting elsewhere.
unsigned active_mask();

// A kernel with its arguments.
struct Kernel {
    void (*function)(const void* closure);
    const void* closure;

    void operator()() const { function(closure); }
};

// Runs `kernel` once for each thread of each block.
void run_grid(const Kernel& kernel, dim3 grid, dim3 block);

// Shared by both engines (engine.cpp).

struct Launch {
    const char* text;     // the kernel as the source names it
    const void* address;  // of the kernel's function
    dim3 grid;
    dim3 block;
    size_t shared_bytes;
};

struct Argument {
    const void* bytes;
    size_t size;
};

// Checks the launch's sizes, then hands it to the hook, or runs it and says the kernel's name in
// whatever Violation comes out.
void launch(const Launch& what, const Argument* arguments, size_t argument_count,
            const Kernel& kernel);

// cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes).
void allow_shared_bytes(const void* kernel, size_t bytes);

void* dynamic_shared();  // of the running block
void memory_fence();

// So many bytes on either side of the dynamic shared memory belong to nothing else.
constexpr size_t kSharedGap = 64;
struct SharedRegion {
    unsigned char* begin;
    size_t size;
    std::string name;  // none for a gap between variables
};
const std::vector<SharedRegion>& static_shared();
SharedRegion dynamic_shared_region();

// What the checker of memory accesses (checker.cpp), which only fibers use, asks of its engine ...
bool own_stack(const void* address);                 // of the running thread
[[noreturn]] void stop(const std::string& message);  // ends the launch with a Violation
// ... and what is called at the start of a block, where the checker is linked in.
__attribute__((weak)) void checker_begin_block();

// What an engine calls around every block.
void begin_block(uint3 block);  // all shared memory is poisoned
void end_block();               // the zones around the dynamic shared memory must be untouched

// The results of one warp operation, once all lanes of `mask` that still run wait for it. `lanes`
// holds the threads of the warp, null past the end of the block.
void complete_warp(Thread* const (&lanes)[kWarp], unsigned mask);

// All `count` threads wait at a barrier: that they wait at the same one, and its result for each.
void complete_barrier(Thread* const* threads, size_t count);

bool same_site(const char* a, const char* b);
std::string describe(const Thread& thread);

}  // namespace emulation
