// Lets g++ compile a CUDA source and run its kernels on the CPU. Included before the source's first
// line (g++ -x c++ -DMDCP_EMULATION -include cuda_emulation.h), as nvcc includes cuda_runtime.h.
//
// A kernel stays a plain function: threadIdx and its like read the thread that an engine (engine.h)
// is running, barriers and warp operations hand control to that engine, and MDCP_LAUNCH calls the
// function once per thread. Not emulated: textures, dynamic parallelism, cooperative groups, blocks
// that wait for each other.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "control.h"
#include "engine.h"

// Qualifiers. Blocks run one after the other, so a block's shared variable can be a static one; the
// unused variable in front of it makes running over its end, or its neighbour's, visible. (Aligned
// to 1, so that no padding, where nothing is seen, lies in between.)
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static
#define EMULATION_JOIN_(a, b) a##b
#define EMULATION_JOIN(a, b) EMULATION_JOIN_(a, b)
#define __shared__                                                                          \
    static __attribute__((used, aligned(1))) unsigned char EMULATION_JOIN(emulation_gap_,   \
                                                                          __COUNTER__)[64]; \
    static

#define MDCP_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::emulation::dynamic_shared())

#define threadIdx (::emulation::current->index)
#define blockIdx (::emulation::block_index)
#define blockDim (::emulation::block_size)
#define gridDim (::emulation::grid_size)
constexpr int warpSize = 32;

#define EMULATION_TEXT_(x) #x
#define EMULATION_TEXT(x) EMULATION_TEXT_(x)
#define EMULATION_SITE(operation) __FILE__ ":" EMULATION_TEXT(__LINE__) " " operation

#define __syncthreads() \
    static_cast<void>(  \
        ::emulation::barrier(::emulation::Barrier::kPlain, 0, EMULATION_SITE("__syncthreads")))
#define __syncthreads_or(predicate) \
    ::emulation::barrier(::emulation::Barrier::kOr, (predicate), EMULATION_SITE("__syncthreads_or"))
#define __syncthreads_and(predicate)                              \
    ::emulation::barrier(::emulation::Barrier::kAnd, (predicate), \
                         EMULATION_SITE("__syncthreads_and"))
#define __syncthreads_count(predicate)                              \
    ::emulation::barrier(::emulation::Barrier::kCount, (predicate), \
                         EMULATION_SITE("__syncthreads_count"))

#include "atomics.h"
#include "cuda_runtime.h"
#include "intrinsics.h"
#include "warp.h"

#define EMULATION_UNCHECKED __attribute__((no_sanitize("thread")))

namespace emulation {

// Converts the arguments as a call would, shows their bytes to the hook, or runs the kernel.
template <class... Parameters, class... Arguments>
void launch(const char* text, dim3 grid, dim3 block, size_t shared_bytes, const void* /*stream*/,
            void (*kernel)(Parameters...), Arguments&&... arguments) {
    static_assert(sizeof...(Parameters) == sizeof...(Arguments));
    std::tuple<std::decay_t<Parameters>...> values(std::forward<Arguments>(arguments)...);
    std::apply(
        [&](auto&... value) {
            const Argument bytes[sizeof...(value) + 1] = {{&value, sizeof value}..., {}};
            // Passing the arguments on is the launch's doing, not the kernel's: not checked.
            const auto call = [&]() EMULATION_UNCHECKED { kernel(value...); };
            const auto function = [](const void* closure) EMULATION_UNCHECKED {
                (*static_cast<decltype(call)*>(closure))();
            };
            launch({text, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes}, bytes,
                   sizeof...(value), {function, &call});
        },
        values);
}

// Makes the checker see a buffer as its parts alone, for as long as this lives.
class Parts {
  public:
    explicit Parts(const void* buffer) : buffer_(buffer) {
        if (buffer_) emulation_remove_buffer(buffer_);
    }
    ~Parts() {
        for (const void* part : parts_) emulation_remove_buffer(part);
        if (buffer_) emulation_add_buffer(buffer_, size_);
    }
    Parts(const Parts&) = delete;
    Parts& operator=(const Parts&) = delete;

    void add(const void* part, size_t size) {
        parts_.push_back(part);
        emulation_add_buffer(part, size);
        size_ = static_cast<const char*>(part) + size - static_cast<const char*>(buffer_);
    }

  private:
    const void* buffer_;
    size_t size_ = 0;
    std::vector<const void*> parts_;
};

}  // namespace emulation

#define MDCP_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ::emulation::launch(#kernel, grid, block, shared_bytes, stream, \
                        kernel __VA_OPT__(, ) __VA_ARGS__)
