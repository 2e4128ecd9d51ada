// Ward's criterion (Ward 1963): what merging two clusters adds to the sum of squares.
#pragma once

#include <cmath>

#include "numerics/device.h"

namespace mdcp {

// A cost that is computed in another way, by a box or without a division, may be this much off.
constexpr double kWardSlack = 1 + 1e-12;

// |a| |b| / (|a| + |b|) times the squared distance of the centroids; symmetric bit for bit.
MDCP_BOTH double ward_cost(double squared_distance, double reciprocal_size_a,
                           double reciprocal_size_b) {
    return squared_distance / (reciprocal_size_a + reciprocal_size_b);
}

// The height that scipy.cluster.hierarchy.ward gives a merge: the distance of two single points.
MDCP_BOTH double ward_height(double cost) {
    return std::sqrt(2.0 * cost);
}

MDCP_BOTH double merged_centroid(double a, double size_a, double b, double size_b) {
    return (a * size_a + b * size_b) / (size_a + size_b);
}

}  // namespace mdcp
