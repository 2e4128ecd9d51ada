// The clusters that still stand while a hierarchy of Ward's grows, and boxes around them.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/simd.h"

namespace mdcp::cpu {

constexpr int kWardLanes = 8;                        // slots of a leaf, and leaves of a group
constexpr int kWardGroup = kWardLanes * kWardLanes;  // slots of a group
constexpr double kWardFar = std::numeric_limits<double>::infinity();
constexpr int32_t kWardNobody = std::numeric_limits<int32_t>::max();

// Where coordinate d of a slot or a box stands: those of kWardLanes neighbours lie side by side,
// all dimensions of them in one run of memory.
MDCP_INLINE int64_t ward_place(int64_t slot, int d, int dimensions) {
    return (slot / kWardLanes * dimensions + d) * kWardLanes + slot % kWardLanes;
}

// WardBoxes around runs of slots, a multiple of kWardLanes of them.
struct WardBoxes {
    std::vector<double> low, high;   // [ward_place]
    std::vector<double> reciprocal;  // [boxes], the largest within

    // All boxes empty.
    void resize(int64_t boxes, int dimensions) {
        low.assign(boxes * dimensions, kWardFar);
        high.assign(boxes * dimensions, -kWardFar);
        reciprocal.assign(boxes, 0);
    }
};

// The clusters that still stand, in slots that follow the spatial order of the points. An empty
// slot is infinitely far from everything.
struct WardFront {
    int64_t used = 0;                  // slots that may hold clusters, a multiple of kWardLanes
    int64_t alive = 0;                 // clusters that stand
    std::vector<double> coordinates;   // [ward_place] centroids
    std::vector<double> size;          // [capacity] points
    std::vector<double> reciprocal;    // [capacity] 1 / size
    std::vector<double> cost;          // [capacity] of the merge that made it
    std::vector<int32_t> index;        // [capacity] its smallest point, which decides ties
    std::vector<int32_t> node;         // [capacity] its point, or points + position of its merge
    std::vector<int32_t> nearest;      // [capacity] slot; before a search, a guess or kWardNobody
    std::vector<double> nearest_cost;  // [capacity]
    WardBoxes leaves, groups;
};

// Bounds the leaves and groups that have a slot of `changed` [capacity].
void bound_front(WardFront& front, const unsigned char* changed, int32_t dimensions, int simd);

// Finds the nearest cluster of each of the slots [count]. May be called for some of the slots while
// another thread searches for others.
void search_front(WardFront& front, const int32_t* slots, int64_t count, int32_t dimensions,
                  int simd);

}  // namespace mdcp::cpu
