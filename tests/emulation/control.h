// The C functions by which the tests steer the emulator (through ctypes; see build.py).
#pragma once

#include <cstddef>
#include <cstdint>

#define EMULATION_API extern "C" __attribute__((visibility("default")))

// Called instead of running the kernel; 0 when all went well.
using emulation_hook = int (*)(const void* kernel, const unsigned* grid, const unsigned* block,
                               size_t shared_bytes, size_t argument_count,
                               const void* const* arguments, const size_t* argument_sizes);

EMULATION_API void emulation_set_hook(emulation_hook hook);  // null: run the kernels

// The order in which threads and blocks run: 0 for ascending, else drawn from the seed.
EMULATION_API void emulation_set_schedule(uint64_t seed);

// Where the module lies in memory: what symbols' addresses are relative to.
EMULATION_API const void* emulation_base();

// A __shared__ variable with static storage, found in the module's symbol table; without a name, a
// gap between two.
EMULATION_API void emulation_add_static_shared(size_t offset, size_t size, const char* name);

// The byte that fills shared memory when a block starts.
EMULATION_API void emulation_set_poison(unsigned char byte);

// Global memory that kernels may use, where every access is checked (checker.cpp; without it, these
// do nothing).
EMULATION_API void emulation_add_buffer(const void* begin, size_t size);
EMULATION_API void emulation_remove_buffer(const void* begin);
EMULATION_API void emulation_clear_buffers();
