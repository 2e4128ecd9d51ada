// What both devices' seeds of k-means agree on, beside numerics/philox.h and numerics/fixed.h.
#pragma once

#include <cmath>
#include <cstdint>

namespace mdcp {

// Candidates that are drawn for each seed but the first: 2 + ln(points). It must not depend on the
// number of seeds, or the seeds for few clusters were not the first of those for many.
inline int plus_plus_trials(int64_t points) {
    return 2 + static_cast<int>(std::log(static_cast<double>(points)));
}

// Given centres are kept within this of the scaled points: 2^60, whose square is still a float.
constexpr double kFarAway = 1152921504606846976.0;

}  // namespace mdcp
