// Ward's hierarchies of many problems.
#pragma once

#include <cstdint>

#include "ops/execution.h"

namespace mdcp {

struct WardProblem {
    const float* points;     // [offsets[problems], dimensions], finite
    const int64_t* offsets;  // [problems + 1]
    int64_t problems;
    int32_t dimensions;
};

// The rows of scipy.cluster.hierarchy.linkage, one problem's after the other's, cluster ids local
// to the problem.
struct WardResult {
    double* linkage;  // OUT [sum of max(problem size - 1, 0), 4]
};

namespace cpu {

void ward(const WardProblem& in, const WardResult& out, Execution execution);

}  // namespace cpu

namespace cuda {

// The offsets are memory of the host, all else is the device's.
void ward(const WardProblem& in, const WardResult& out, const Execution& execution);
int64_t ward_tables(const WardProblem& in, int64_t* tables);
int64_t ward_workspace(const WardProblem& in);

}  // namespace cuda
}  // namespace mdcp
