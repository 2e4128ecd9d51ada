// Sums whose order does not matter: whole numbers of 2^-40.
#pragma once

#include <cmath>
#include <cstdint>

#include "numerics/device.h"

namespace mdcp {

// Lloyd's iteration lowers the inertia until no centre moves, but for rounding: where coordinates
// span more than fixed point holds, centres may come back to where they were, for ever. They are
// kept at every iteration that is a power of two, from this one on; centres that are found there
// again have stopped to lower the inertia, and the iteration ends.
constexpr int64_t kCycleStart = 16;

// Coordinates are scaled by a power of two so that none is above 1 in magnitude. Then sums of up to
// 2^22 of them fit into 63 bits.
constexpr int kFixedBits = 40;
constexpr int64_t kMaxPointsInFixedSum = int64_t{1} << 22;
constexpr double kFixedOne = static_cast<double>(int64_t{1} << kFixedBits);

MDCP_BOTH int64_t to_fixed(float coordinate) {
    return static_cast<int64_t>(std::rint(static_cast<double>(coordinate) * kFixedOne));
}

MDCP_BOTH float fixed_mean(int64_t sum, int64_t count) {
    return static_cast<float>(static_cast<double>(sum) / (static_cast<double>(count) * kFixedOne));
}

// The power of two that brings numbers up to `largest` in magnitude into (-1, 1).
MDCP_BOTH double unit_scale(float largest) {
    int exponent = 0;
    std::frexp(static_cast<double>(largest), &exponent);
    return std::ldexp(1.0, -exponent);
}

// Distances become whole numbers too, small enough that double sums of `count` of them are exact.
// The scale is a power of two: distances up to `largest` become whole numbers below 2^51 / count.
MDCP_BOTH double weight_scale(float largest, int64_t count) {
    int bits = 0;
    while ((int64_t{1} << bits) < count) ++bits;
    int exponent = 0;
    std::frexp(static_cast<double>(largest), &exponent);
    return std::ldexp(1.0, 51 - bits - exponent);
}

// The nearest whole number: 2^52 leaves no bits for a fraction.
MDCP_BOTH double fixed_weight(float distance, double scale) {
    constexpr double kNoFraction = static_cast<double>(int64_t{1} << 52);
    return (static_cast<double>(distance) * scale + kNoFraction) - kNoFraction;
}

// A sum of doubles in a fixed order, made for a warp: lane l adds the terms l, l + 32, ..., then
// halves are folded together.
constexpr int kSumLanes = 32;

MDCP_BOTH double fold_lanes(double* lanes) {
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
}

}  // namespace mdcp
