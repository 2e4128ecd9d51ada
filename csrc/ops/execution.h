// What the ops have in common. An op is a problem, a result and an execution: plain pointers and
// sizes, no Python, no torch. Arguments are checked by the callers in mdcp_fast/ops; a shape stands
// beside every pointer.
#pragma once

#include <cstdint>

namespace mdcp::cpu {

// How much of the machine one call may use. No answer depends on it.
struct Execution {
    int threads;  // at least 1
    int simd;     // a level of cpu/simd.h, never above simd_best()
};

}  // namespace mdcp::cpu

// CUDA builds only. An op leaves its work to the stream and waits for nothing. Some need tables,
// which follow from what of the problem is the host's memory: x_tables writes them, unless its
// pointer is null, and returns how many numbers they have; the caller copies them to the device.
namespace mdcp::cuda {

struct Execution {
    const int64_t* tables;  // of the device; null where the op has none
    void* workspace;        // of the device: as many bytes as the op's x_workspace says
    int device;
    void* stream;
};

}  // namespace mdcp::cuda
