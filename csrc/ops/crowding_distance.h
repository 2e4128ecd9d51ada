// NSGA-II crowding distance of every point within its segment.
#pragma once

#include <cstdint>

#include "ops/execution.h"

namespace mdcp {

struct CrowdingDistanceProblem {
    const float* points;     // [offsets[segments], dimensions], finite
    const int64_t* offsets;  // [segments + 1]
    int64_t segments;
    int32_t dimensions;
};

struct CrowdingDistanceResult {
    float* distances;  // OUT [offsets[segments]]
};

namespace cpu {

void crowding_distance(const CrowdingDistanceProblem& in, const CrowdingDistanceResult& out,
                       Execution execution);

}  // namespace cpu

namespace cuda {

// The offsets are memory of the host, all else is the device's.
void crowding_distance(const CrowdingDistanceProblem& in, const CrowdingDistanceResult& out,
                       const Execution& execution);
int64_t crowding_distance_tables(const CrowdingDistanceProblem& in, int64_t* tables);
int64_t crowding_distance_workspace(const CrowdingDistanceProblem& in);

}  // namespace cuda
}  // namespace mdcp
