// Greedy k-means++ seeds of one problem.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/lloyd.h"

namespace mdcp::cpu {

// The first k points chosen, all different; those for a smaller k are the first of them. Each is
// the best of 2 + floor(ln count) candidates drawn in proportion to the squared distance from the
// seeds before it.
std::vector<int32_t> kmeans_plus_plus(const Cloud& cloud, int64_t k, uint64_t seed, int simd);

}  // namespace mdcp::cpu
