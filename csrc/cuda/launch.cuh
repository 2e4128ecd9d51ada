// What launchers and kernels share: the launch, the device guard, reductions over warps and blocks.
//
// A launcher takes device pointers, a workspace and a stream, holds a DeviceGuard, launches, and
// returns without waiting. It allocates nothing. The kernels are also run without a GPU: with
// MDCP_EMULATION the two macros come from the emulator, cuda_runtime.h is a stand-in.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "numerics/distance.h"

namespace mdcp::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr size_t kPlainSharedBytes = 48 * 1024;  // what every block may have without asking

inline void check_cuda(cudaError_t status, const char* what) {
    if (status != cudaSuccess) {
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
    }
}

// Makes a device the current one for as long as the guard lives.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
        if (device == before_) return;
        check_cuda(cudaSetDevice(device), "cudaSetDevice");
        changed_ = true;
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Lets a kernel have more shared memory than kPlainSharedBytes, where the device has it.
template <class Kernel>
void allow_shared_bytes(Kernel* kernel, size_t bytes) {
    if (bytes <= kPlainSharedBytes) return;
    check_cuda(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory");
}

#ifndef MDCP_EMULATION

// MDCP_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...); a kernel template's name
// stands in parentheses: (kernel<3>). Throws where the launch was refused.
#define MDCP_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                     \
    do {                                                                                \
        kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>( \
            __VA_ARGS__);                                                               \
        ::mdcp::cuda::check_cuda(cudaGetLastError(), "launch of " #kernel);             \
    } while (false)

// Declares `name`, a T* to the block's dynamic shared memory.
#define MDCP_DYNAMIC_SHARED(T, name)                                   \
    extern __shared__ __align__(16) unsigned char mdcp_shared_bytes[]; \
    T* name = reinterpret_cast<T*>(mdcp_shared_bytes)

#endif

// How many groups of `size` hold `count` things.
__host__ __device__ constexpr int64_t ceil_div(int64_t count, int64_t size) {
    return (count + size - 1) / size;
}

struct Sum {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a + b;
    }
};

struct Min {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return b < a ? b : a;
    }
};

struct Max {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a < b ? b : a;
    }
};

// op over the values of the warp's 32 lanes, in every lane. The result is one whatever the order:
// op must be associative and commutative without rounding. T: a type of the shuffle instructions.
template <class T, class Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        value = op(value, __shfl_xor_sync(kAllLanes, value, step));
    }
    return value;
}

// op over the values of lanes 0..lane.
template <class T, class Op>
__device__ __forceinline__ T warp_scan(T value, Op op) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    for (int step = 1; step < kWarp; step *= 2) {
        const T before = __shfl_up_sync(kAllLanes, value, step);
        if (lane >= step) value = op(before, value);
    }
    return value;
}

// The nearest of what the warp's lanes found, in every lane: among equal distances the smallest
// index.
template <class Real>
__device__ __forceinline__ void warp_nearest(Real& distance, int32_t& index) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
        const Real other_distance = __shfl_xor_sync(kAllLanes, distance, step);
        const int32_t other = __shfl_xor_sync(kAllLanes, index, step);
        if (nearer(other_distance, other, distance, index)) {
            distance = other_distance;
            index = other;
        }
    }
}

// op over the values of a block of whole warps, in every thread. scratch: [warps], shared memory,
// free for the next use when the call returns. All threads of the block call it.
template <class T, class Op>
__device__ __forceinline__ T block_reduce(T value, Op op, T* scratch) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    value = warp_reduce(value, op);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = scratch[0];
    for (int other = 1; other < warps; ++other) value = op(value, scratch[other]);
    __syncthreads();
    return value;
}

}  // namespace mdcp::cuda
