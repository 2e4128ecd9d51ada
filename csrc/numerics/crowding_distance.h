// The crowding distance's one formula (Deb et al. 2002, NSGA-II, section III-B).
#pragma once

#include <cstdint>

#include "numerics/device.h"

namespace mdcp {

// What one dimension adds to a point between two others in sorted order. In double, where the
// difference of two floats cannot overflow.
MDCP_BOTH double crowding_gap(float previous, float next, float lowest, float highest) {
    return (static_cast<double>(next) - static_cast<double>(previous)) /
           (static_cast<double>(highest) - static_cast<double>(lowest));
}

// An integer that orders as the finite float of these bits does; -0.0 and 0.0 get the same. Its own
// inverse, but for the zeros' signs. Always below the largest int32.
MDCP_BOTH int32_t order_key(int32_t bits) {
    const int32_t key = bits < 0 ? bits ^ 0x7fffffff : bits;
    return key == -1 ? 0 : key;
}

}  // namespace mdcp
