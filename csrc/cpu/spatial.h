// An order of points in which neighbours in memory are neighbours in space.
#pragma once

#include <cstdint>
#include <vector>

namespace mdcp::cpu {

// A k-d tree's leaves from left to right: every aligned run of 8 or 16 entries is compact, so that
// its bounding box tells most of the other points apart. No answer depends on it, only the time.
std::vector<int32_t> spatial_order(const float* points,  // [count, dimensions]
                                   int64_t count, int32_t dimensions);

}  // namespace mdcp::cpu
