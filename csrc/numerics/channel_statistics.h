// Mean, variance and cosine distance of a row of weights: the sums' order and the closing formula.
//
// The sums are of d = w - first, in double, where `first` is the row's first weight. It is one of
// the row's own, so (mean - first)^2 <= n * variance, and taking the square of the mean of d from
// the mean of d^2 costs at most log2(n) of double's 53 bits, however far from zero the weights lie.
//
// The order is fixed so that every device and instruction set can keep it: lane l adds up, from 0,
// the d of the weights l, l + kLanes, l + 2 kLanes, ...; then the lanes are added in halves, l + 16
// to l, l + 8 to l, and so on to lane 0. Squares likewise. A lane without weights is 0.
#pragma once

#include <cmath>

#include "numerics/device.h"

namespace mdcp {

constexpr int kLanes = 32;

struct RowStatistics {
    double mean;
    double variance;         // of the population: divided by n
    double cosine_distance;  // 1 - cos(angle to the all-ones vector), 1 for a row of zeros
};

// first: the row's first weight; sum, squares: of d and of d^2 over its n weights.
MDCP_BOTH RowStatistics row_statistics(double first, double sum, double squares, double n) {
    const double shifted = sum / n;
    const double raw = squares / n - shifted * shifted;
    const double mean = first + shifted;
    const double variance = raw > 0.0 ? raw : 0.0;
    // cos = mean / norm. For a positive mean 1 - cos is variance / (norm (norm + mean)), without
    // the cancellation that would leave nothing of a small angle.
    const double norm = std::sqrt(mean * mean + variance);
    const double above = mean > 0.0 ? variance : norm - mean;
    const double below = mean > 0.0 ? norm * (norm + mean) : norm;
    const double cosine_distance = norm > 0.0 ? above / below : 1.0;
    return {mean, variance, cosine_distance};
}

}  // namespace mdcp
