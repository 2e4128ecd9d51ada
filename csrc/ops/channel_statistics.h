// Mean, population variance and cosine distance to the all-ones vector of rows of weights.
#pragma once

#include <cstdint>

#include "ops/execution.h"

namespace mdcp {

// Tensors of weights, each read as rows.
struct ChannelStatisticsProblem {
    enum Type : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
    const int64_t* addresses;    // [tensors] of [rows, row_length] weights of the type
    const int64_t* types;        // [tensors]
    const int64_t* rows;         // [tensors]
    const int64_t* row_lengths;  // [tensors] at least 1 where there are rows
    int64_t tensors;
};

struct ChannelStatisticsResult {
    float* statistics;  // OUT [rows of all tensors, 3]
};

namespace cpu {

// Returns the first tensor with a mean or variance that is not a finite float (one of its weights
// is not, or they are enormous), -1 if there is none.
int64_t channel_statistics(const ChannelStatisticsProblem& in, const ChannelStatisticsResult& out,
                           Execution execution);

}  // namespace cpu
}  // namespace mdcp
