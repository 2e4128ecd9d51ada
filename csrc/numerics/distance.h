// The one squared Euclidean distance of the clustering ops, and how its ties are decided.
#pragma once

#include <cstdint>

#include "numerics/device.h"

namespace mdcp {

constexpr int kMaxDimensions = 16;

// Coordinate d of a point is a[d * a_stride]. Terms are added in the order of the dimensions, so a
// point padded with zeros has the same distances. The first term begins the sum: compilers do not
// know that a square is never -0, and would keep an addition to 0.
template <int kDimensions, class Real>
MDCP_BOTH Real squared_distance(const Real* a, int64_t a_stride, const Real* b, int64_t b_stride) {
    const Real first = a[0] - b[0];
    Real sum = first * first;
    MDCP_DIMENSIONS
    for (int d = 1; d < kDimensions; ++d) {
        const Real difference = a[d * a_stride] - b[d * b_stride];
        sum += difference * difference;
    }
    return sum;
}

// A number that squared_distance<kDimensions> of `a` and no point of the box exceeds. It holds for
// the rounded numbers too: the operations are the same, and rounding is monotone.
template <int kDimensions, class Real>
MDCP_BOTH Real squared_distance_to_box(const Real* a, int64_t a_stride, const Real* low,
                                       const Real* high, int64_t box_stride) {
    Real sum = 0;
    MDCP_DIMENSIONS
    for (int d = 0; d < kDimensions; ++d) {
        const Real below = low[d * box_stride] - a[d * a_stride];
        const Real above = a[d * a_stride] - high[d * box_stride];
        const Real outside = below > above ? below : above;
        const Real difference = outside > 0 ? outside : 0;
        sum += difference * difference;
    }
    return sum;
}

// Among equal distances the smallest index is the nearest.
template <class Real>
MDCP_BOTH bool nearer(Real distance, int32_t index, Real best_distance, int32_t best_index) {
    return (distance < best_distance) | ((distance == best_distance) & (index < best_index));
}

}  // namespace mdcp
