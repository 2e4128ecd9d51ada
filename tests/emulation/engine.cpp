// What both engines share: launches and their checks, shared memory, the rules of barriers and warp
// operations, and the C functions by which Python steers the emulator.
#include "engine.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "control.h"

// The start of the program or library that this file is linked into.
extern "C" __attribute__((visibility("hidden"))) const unsigned char __ehdr_start;

namespace emulation {

dim3 grid_size;
dim3 block_size;
uint3 block_index;
unsigned launch_number = 0;

namespace {

constexpr size_t kPlainSharedBytes = 48 << 10;
constexpr size_t kZone = kSharedGap;  // on either side of the dynamic shared memory

struct Memory {
    std::vector<SharedRegion> statics;
    std::unique_ptr<unsigned char[]> dynamic;  // zone, the bytes themselves, zone
    size_t dynamic_bytes = 0;
    unsigned char poison = 0xff;
    std::map<const void*, size_t> allowed_bytes;
};

Memory memory;
emulation_hook hook = nullptr;

// Whole cache lines in front of the kernel's bytes, so that vector types are aligned.
unsigned char* dynamic_begin() {
    const auto address = reinterpret_cast<uintptr_t>(memory.dynamic.get()) + kZone;
    return reinterpret_cast<unsigned char*>((address + kZone - 1) / kZone * kZone);
}

std::string name_of(const char* text) {
    std::string name = text;
    if (name.front() == '(' && name.back() == ')') name = name.substr(1, name.size() - 2);
    return name;
}

void check_sizes(const Launch& what) {
    const dim3 grid = what.grid, block = what.block;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    const auto text = [](dim3 d) {
        return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
    };
    if (threads == 0 || threads > kMaxThreads || block.z > 64)
        throw Violation("expected a block of 1 to 1024 threads, got " + text(block));
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
        grid.z > 65535)
        throw Violation("expected a grid of 1 to (2^31 - 1) x 65535 x 65535 blocks, got " +
                        text(grid));
    const auto allowed = memory.allowed_bytes.find(what.address);
    const size_t limit =
        allowed == memory.allowed_bytes.end() ? kPlainSharedBytes : allowed->second;
    if (what.shared_bytes > std::max(limit, kPlainSharedBytes))
        throw Violation("expected at most " + std::to_string(limit) +
                        " bytes of dynamic shared memory (more must be allowed by "
                        "cudaFuncSetAttribute), got " +
                        std::to_string(what.shared_bytes));
}

}  // namespace

void allow_shared_bytes(const void* kernel, size_t bytes) {
    memory.allowed_bytes[kernel] = bytes;
}

void launch(const Launch& what, const Argument* arguments, size_t argument_count,
            const Kernel& kernel) {
    const std::string name = name_of(what.text);
    try {
        check_sizes(what);
        if (hook != nullptr) {
            std::vector<const void*> bytes;
            std::vector<size_t> sizes;
            for (size_t i = 0; i < argument_count; ++i) {
                bytes.push_back(arguments[i].bytes);
                sizes.push_back(arguments[i].size);
            }
            const unsigned grid[3] = {what.grid.x, what.grid.y, what.grid.z};
            const unsigned block[3] = {what.block.x, what.block.y, what.block.z};
            if (hook(what.address, grid, block, what.shared_bytes, argument_count, bytes.data(),
                     sizes.data()) != 0)
                throw Violation("the launch hook failed");
            return;
        }
        if (memory.dynamic_bytes != what.shared_bytes || !memory.dynamic) {
            memory.dynamic_bytes = what.shared_bytes;
            memory.dynamic.reset(new unsigned char[what.shared_bytes + 3 * kZone]);
        }
        ++launch_number;
        grid_size = what.grid;
        block_size = what.block;
        run_grid(kernel, what.grid, what.block);
    } catch (const Violation& violation) {
        throw Violation(name + ": " + violation.what());
    }
}

void* dynamic_shared() {
    return dynamic_begin();
}

void memory_fence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

const std::vector<SharedRegion>& static_shared() {
    return memory.statics;
}

SharedRegion dynamic_shared_region() {
    return {dynamic_begin(), memory.dynamic_bytes, "the dynamic shared memory"};
}

void begin_block(uint3 block) {
    block_index = block;
    unsigned char* const begin = dynamic_begin();
    std::memset(begin - kZone, memory.poison, memory.dynamic_bytes + 2 * kZone);
    for (const SharedRegion& variable : memory.statics)
        std::memset(variable.begin, memory.poison, variable.size);
    if (checker_begin_block != nullptr) checker_begin_block();
}

void end_block() {
    const auto untouched = [](const unsigned char* begin, size_t size, const std::string& what) {
        if (std::any_of(begin, begin + size, [](unsigned char b) { return b != memory.poison; }))
            throw Violation("out of bounds (shared): a thread of block " +
                            std::to_string(block_index.x) + " wrote " + what);
    };
    const unsigned char* const begin = dynamic_begin();
    untouched(begin - kZone, kZone, "before the dynamic shared memory");
    untouched(
        begin + memory.dynamic_bytes, kZone,
        "past the " + std::to_string(memory.dynamic_bytes) + " bytes of dynamic shared memory");
    for (const SharedRegion& variable : memory.statics) {
        if (variable.name.empty())
            untouched(variable.begin, variable.size, "beside a shared variable");
    }
}

bool same_site(const char* a, const char* b) {
    return a == b || std::strcmp(a, b) == 0;
}

std::string describe(const Thread& thread) {
    char text[32];
    std::string where = "thread " + std::to_string(thread.rank);
    switch (thread.state) {
        case State::kReady:
            return where + " runs";
        case State::kReturned:
            return where + " has returned";
        case State::kAtBarrier:
            return where + " waits at " + thread.site;
        case State::kInWarp:
            break;
    }
    std::snprintf(text, sizeof text, " with mask 0x%08x", thread.mask);
    return where + " waits at " + thread.site + text;
}

void complete_barrier(Thread* const* threads, size_t count) {
    const Thread& first = *threads[0];
    size_t yes = 0;
    for (size_t i = 0; i < count; ++i) {
        if (!same_site(threads[i]->site, first.site))
            throw Violation("barrier divergence: " + describe(first) + ", " +
                            describe(*threads[i]));
        yes += threads[i]->value != 0;
    }
    uint64_t result = 0;
    switch (first.barrier) {
        case Barrier::kPlain:
            break;
        case Barrier::kOr:
            result = yes > 0;
            break;
        case Barrier::kAnd:
            result = yes == count;
            break;
        case Barrier::kCount:
            result = yes;
            break;
    }
    for (size_t i = 0; i < count; ++i) threads[i]->result = result;
}

void complete_warp(Thread* const (&lanes)[kWarp], unsigned mask) {
    unsigned here = 0;
    const Thread* first = nullptr;
    uint64_t ballot = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        const Thread* const thread = lanes[lane];
        if (!(mask >> lane & 1) || thread == nullptr || thread->state == State::kReturned) continue;
        here |= 1u << lane;
        if (first == nullptr) first = thread;
        if (!same_site(thread->site, first->site))
            throw Violation("warp divergence: " + describe(*first) + ", " + describe(*thread));
        ballot |= uint64_t{thread->value != 0} << lane;
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (!(here >> lane & 1)) continue;
        Thread& thread = *lanes[lane];
        switch (thread.operation) {
            case WarpOperation::kSync:
                break;
            case WarpOperation::kBallot:
                thread.result = ballot;
                break;
            case WarpOperation::kShuffle:
                if (!(here >> thread.source & 1))
                    throw Violation("shuffle without participation: " + describe(thread) +
                                    " and reads lane " + std::to_string(thread.source) +
                                    ", which does not take part");
                thread.result = lanes[thread.source]->value;
                break;
            case WarpOperation::kMatch:
                thread.result = 0;
                for (unsigned other = 0; other < kWarp; ++other) {
                    if (here >> other & 1 && lanes[other]->value == thread.value)
                        thread.result |= uint64_t{1} << other;
                }
                break;
        }
    }
}

}  // namespace emulation

void emulation_set_hook(emulation_hook hook) {
    emulation::hook = hook;
}

const void* emulation_base() {
    return &__ehdr_start;
}

void emulation_add_static_shared(size_t offset, size_t size, const char* name) {
    // The symbol table's addresses count from the start of the file as it lies in memory.
    const auto address = reinterpret_cast<uintptr_t>(emulation_base()) + offset;
    emulation::memory.statics.push_back({reinterpret_cast<unsigned char*>(address), size, name});
}

__attribute__((weak)) void emulation_add_buffer(const void*, size_t) {}
__attribute__((weak)) void emulation_remove_buffer(const void*) {}
__attribute__((weak)) void emulation_clear_buffers() {}

void emulation_set_poison(unsigned char byte) {
    emulation::memory.poison = byte;
}
