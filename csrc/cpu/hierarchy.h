// Ward's hierarchy of one problem, as the ops `ward` and `kmeans` share it.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/execution.h"

namespace mdcp::cpu {

// Row r of a hierarchy of n points: clusters `first` < `second` become cluster n + r.
struct Merge {
    int32_t first, second;  // below n: a point
    int32_t size;           // points of the merged cluster
    double cost;            // what the merge adds to the sum of squares; never falls along the rows
};

// The count - 1 merges, cheapest first. `order` begins with the points' spatial_order.
std::vector<Merge> ward_hierarchy(const float* points,  // [count, dimensions]
                                  int64_t count, int32_t dimensions,
                                  const std::vector<int32_t>& order, Execution execution);

}  // namespace mdcp::cpu
