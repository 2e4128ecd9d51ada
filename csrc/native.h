// Every entry point of the native core: plain pointers and sizes, no Python, no torch.
// Arguments are checked by the callers in mdcp_fast/ops; a shape stands beside every pointer.
#pragma once

#include <cstdint>

#include "numerics/population.h"

namespace mdcp {

// How much of the machine one call may use. No answer depends on it.
struct Execution {
    int threads;  // at least 1
    int simd;     // a level of cpu/simd.h, never above simd_best()
};

int simd_best();          // the highest level this processor runs
int cuda_device_count();  // devices that a CUDA build can use, 0 without a driver; CUDA builds only

// Fitness of every candidate of every run; see candidate_fitness in numerics/population.h.
void evaluate_population(const int64_t* population,  // [runs, candidates, axes] widths, from 1
                         int64_t runs, int64_t candidates, int64_t axes,
                         const double* loss,           // [sum of channels]
                         const int64_t* loss_offsets,  // [axes + 1]
                         const Cost& cost,             //
                         const int64_t* limits,        // [runs, costs], each at least 1
                         double ceiling,               // no sum of losses exceeds it
                         double* fitness,              // OUT [runs, candidates]
                         Execution how);

}  // namespace mdcp
