// Every entry point of the native core: plain pointers and sizes, no Python, no torch.
// Arguments are checked by the callers in mdcp_fast/ops; a shape stands beside every pointer.
#pragma once

#include <cstdint>

namespace mdcp {

// How much of the machine one call may use. No answer depends on it.
struct Execution {
    int threads;  // at least 1
    int simd;     // a level of cpu/simd.h, never above simd_best()
};

int simd_best();          // the highest level this processor runs
int cuda_device_count();  // devices that a CUDA build can use, 0 without a driver; CUDA builds only

}  // namespace mdcp
