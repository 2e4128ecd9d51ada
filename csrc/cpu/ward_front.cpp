#include "cpu/ward_front.h"

#include "cpu/dimensions.h"
#include "cpu/lanes.h"
#include "numerics/distance.h"
#include "numerics/ward.h"

namespace mdcp::cpu {
namespace {

constexpr int64_t kBit[kWardLanes] = {1, 2, 4, 8, 16, 32, 64, 128};
constexpr double kFinite = 1e300;  // above every cost of float coordinates

// Of 2 * half lanes.
template <int half = kWardLanes / 2>
MDCP_INLINE double least_of(const double* lanes) {
    double lower[half];
    MDCP_LANES
    for (int lane = 0; lane < half; ++lane) {
        lower[lane] = lanes[lane + half] < lanes[lane] ? lanes[lane + half] : lanes[lane];
    }
    if constexpr (half > 1) return least_of<half / 2>(lower);
    return lower[0];
}

template <int half = kWardLanes / 2>
MDCP_INLINE double greatest_of(const double* lanes) {
    double upper[half];
    MDCP_LANES
    for (int lane = 0; lane < half; ++lane) {
        upper[lane] = lanes[lane + half] > lanes[lane] ? lanes[lane + half] : lanes[lane];
    }
    if constexpr (half > 1) return greatest_of<half / 2>(upper);
    return upper[0];
}

template <int kDimensions>
struct Bounds {
    // Bounds kWardLanes boxes, or slots, by the box `into` of `out`.
    static MDCP_INLINE void bound(const double* low, const double* high, const double* reciprocal,
                                  WardBoxes& out, int64_t into) {
        for (int d = 0; d < kDimensions; ++d) {
            double top[kWardLanes];
            MDCP_LANES
            for (int lane = 0; lane < kWardLanes; ++lane) {
                const double value = high[d * kWardLanes + lane];
                top[lane] = value < kWardFar ? value : -kWardFar;  // an empty slot bounds nothing
            }
            out.low.data()[ward_place(into, d, kDimensions)] = least_of(low + d * kWardLanes);
            out.high.data()[ward_place(into, d, kDimensions)] = greatest_of(top);
        }
        out.reciprocal.data()[into] = greatest_of(reciprocal);
    }

    static MDCP_INLINE void run(WardFront* front_pointer, const unsigned char* changed) {
        WardFront& front = *front_pointer;
        for (int64_t group = 0; group * kWardGroup < front.used; ++group) {
            const int64_t leaves = group * kWardLanes;
            bool any = false;
            for (int64_t leaf = leaves; leaf < leaves + kWardLanes; ++leaf) {
                const int64_t slots = leaf * kWardLanes;
                unsigned char any_here = 0;
                for (int lane = 0; lane < kWardLanes; ++lane) any_here |= changed[slots + lane];
                if (!any_here) continue;
                any = true;
                const double* at = front.coordinates.data() + slots * kDimensions;
                bound(at, at, front.reciprocal.data() + slots, front.leaves, leaf);
            }
            if (!any) continue;
            bound(front.leaves.low.data() + leaves * kDimensions,
                  front.leaves.high.data() + leaves * kDimensions,
                  front.leaves.reciprocal.data() + leaves, front.groups, group);
        }
    }
};

template <int kDimensions>
struct Nearest {
    // One search: the slot looked from, and the best found so far.
    struct Search {
        double at[kDimensions];
        double reciprocal;
        int32_t slot;
        double best_cost;
        int32_t best_index, best_slot;
    };

    static MDCP_INLINE void look_at(const WardFront& front, int64_t slot, double cost,
                                    Search& search) {
        const int32_t index = front.index.data()[slot];
        if (nearer(cost, index, search.best_cost, search.best_index)) {
            search.best_cost = cost;
            search.best_index = index;
            search.best_slot = static_cast<int32_t>(slot);
        }
    }

    // What it costs to merge with each slot of a leaf.
    static MDCP_INLINE void costs_of_leaf(const WardFront& front, int64_t start,
                                          const Search& search, double* cost) {
        MDCP_LANES
        for (int lane = 0; lane < kWardLanes; ++lane) {
            cost[lane] = ward_cost(
                squared_distance<kDimensions>(front.coordinates.data() + start * kDimensions + lane,
                                              kWardLanes, search.at, 1),
                front.reciprocal.data()[start + lane], search.reciprocal);
        }
    }

    // The bit of the slot looked from, 0 if it is not in the leaf.
    static MDCP_INLINE int64_t own_lane(int64_t start, const Search& search) {
        const int64_t lane = search.slot - start;
        return lane >= 0 && lane < kWardLanes ? int64_t{1} << lane : 0;
    }

    static MDCP_INLINE void look_at_lanes(const WardFront& front, int64_t start, const double* cost,
                                          double reach, Search& search) {
        int64_t within[kWardLanes], hits = 0;
        MDCP_LANES
        for (int lane = 0; lane < kWardLanes; ++lane) {
            within[lane] = cost[lane] <= reach ? kBit[lane] : 0;
        }
        MDCP_LANES
        for (int lane = 0; lane < kWardLanes; ++lane) hits |= within[lane];
        for (; hits != 0; hits &= hits - 1) {
            const int lane = __builtin_ctzll(hits);
            look_at(front, start + lane, cost[lane], search);
        }
    }

    template <bool own>
    static MDCP_INLINE void look_into_leaf(const WardFront& front, int64_t leaf, Search& search) {
        const int64_t start = leaf * kWardLanes;
        double cost[kWardLanes];
        costs_of_leaf(front, start, search, cost);
        double reach = search.best_cost < kFinite ? search.best_cost : kFinite;
        if constexpr (own) {
            // The least cost of the leaf it begins with saves looking at every lane.
            const int64_t itself = own_lane(start, search);
            MDCP_LANES
            for (int lane = 0; lane < kWardLanes; ++lane) {
                cost[lane] = kBit[lane] == itself ? kWardFar : cost[lane];
            }
            const double least = least_of(cost);
            reach = least < reach ? least : reach;
        }
        look_at_lanes(front, start, cost, reach, search);
    }

    // Which of eight boxes may hold something as near as the best, a bit for each.
    static MDCP_INLINE int64_t within_reach(const WardBoxes& boxes, int64_t start,
                                            const Search& search) {
        // A little too much is looked at, never too little; but nothing that is infinitely far.
        const double reach = search.best_cost < kFinite ? search.best_cost * kWardSlack : kFinite;
        int64_t within[kWardLanes];
        MDCP_LANES
        for (int lane = 0; lane < kWardLanes; ++lane) {
            const double bound = squared_distance_to_box<kDimensions>(
                search.at, 1, boxes.low.data() + start * kDimensions + lane,
                boxes.high.data() + start * kDimensions + lane, kWardLanes);
            const double limit =
                reach * (search.reciprocal + boxes.reciprocal.data()[start + lane]);
            within[lane] = bound <= limit ? kBit[lane] : 0;
        }
        int64_t hits = 0;
        MDCP_LANES
        for (int lane = 0; lane < kWardLanes; ++lane) hits |= within[lane];
        return hits;
    }

    static MDCP_INLINE void look_into_group(const WardFront& front, int64_t group, int64_t but_leaf,
                                            Search& search) {
        int64_t hits = within_reach(front.leaves, group * kWardLanes, search);
        for (; hits != 0; hits &= hits - 1) {
            const int64_t leaf = group * kWardLanes + __builtin_ctzll(hits);
            if (leaf != but_leaf) look_into_leaf<false>(front, leaf, search);
        }
    }

    // In so few leaves it takes less time to compute all costs than to find out which to leave out.
    static MDCP_INLINE void look_everywhere(const WardFront& front, Search& search) {
        double cost[kWardGroup], least[kWardLanes];
        for (int lane = 0; lane < kWardLanes; ++lane) least[lane] = kFinite;
        for (int64_t start = 0; start < front.used; start += kWardLanes) {
            costs_of_leaf(front, start, search, cost + start);
            const int64_t itself = own_lane(start, search);
            MDCP_LANES
            for (int lane = 0; lane < kWardLanes; ++lane) {
                const double other = kBit[lane] == itself ? kWardFar : cost[start + lane];
                cost[start + lane] = other;
                least[lane] = other < least[lane] ? other : least[lane];
            }
        }
        const double reach = least_of(least);
        for (int64_t start = 0; start < front.used; start += kWardLanes) {
            look_at_lanes(front, start, cost + start, reach, search);
        }
    }

    static MDCP_INLINE void look_around(const WardFront& front, Search& search) {
        const int32_t guess = front.nearest.data()[search.slot];
        if (guess != kWardNobody) {
            const double cost =
                ward_cost(squared_distance<kDimensions>(
                              front.coordinates.data() + ward_place(guess, 0, kDimensions),
                              kWardLanes, search.at, 1),
                          front.reciprocal.data()[guess], search.reciprocal);
            look_at(front, guess, cost, search);
        }
        const int64_t own_leaf = search.slot / kWardLanes, own_group = search.slot / kWardGroup;
        look_into_leaf<true>(front, own_leaf, search);
        look_into_group(front, own_group, own_leaf, search);
        for (int64_t start = 0; start * kWardGroup < front.used; start += kWardLanes) {
            int64_t hits = within_reach(front.groups, start, search);
            for (; hits != 0; hits &= hits - 1) {
                const int64_t group = start + __builtin_ctzll(hits);
                if (group != own_group) look_into_group(front, group, -1, search);
            }
        }
    }

    static MDCP_INLINE void run(WardFront* front_pointer, const int32_t* slots, int64_t count) {
        WardFront& front = *front_pointer;
        for (int64_t i = 0; i < count; ++i) {
            Search search;
            search.slot = slots[i];
            search.reciprocal = front.reciprocal.data()[search.slot];
            search.best_cost = kWardFar;
            search.best_index = search.best_slot = kWardNobody;
            for (int d = 0; d < kDimensions; ++d) {
                search.at[d] = front.coordinates.data()[ward_place(search.slot, d, kDimensions)];
            }
            if (front.used <= kWardGroup) {
                look_everywhere(front, search);
            } else {
                look_around(front, search);
            }
            front.nearest.data()[search.slot] = search.best_slot;
            front.nearest_cost.data()[search.slot] = search.best_cost;
        }
    }
};

}  // namespace

void bound_front(WardFront& front, const unsigned char* changed, int32_t dimensions, int simd) {
    dispatch_dimensions<Bounds>(dimensions, simd, &front, changed);
}

void search_front(WardFront& front, const int32_t* slots, int64_t count, int32_t dimensions,
                  int simd) {
    dispatch_dimensions<Nearest>(dimensions, simd, &front, slots, count);
}

}  // namespace mdcp::cpu
