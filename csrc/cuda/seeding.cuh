// Greedy k-means++ seeds on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/lloyd.cuh"

namespace mdcp::cuda {

// A problem that k-means++ seeds.
struct PlusPlusTask {
    int64_t first, count;  // its points
    int64_t seeds;         // of it: as many as its largest k
    int64_t seed;          // its first among those of all problems
    int64_t trials;        // candidates for each seed
};

// Draws the seeds of every task.
void launch_plus_plus(const Lloyd& data, const PlusPlusTask* tasks, int64_t task_count,
                      uint64_t seed,
                      float* distance,  // scratch [points]
                      int32_t* taken,   // scratch [points]
                      int32_t* seeds,   // OUT points, within their problems
                      cudaStream_t stream);

}  // namespace mdcp::cuda
