// Ward's hierarchy by rounds of reciprocal nearest neighbours.
//
// In each round every cluster whose neighbourhood changed looks for its nearest cluster, then all
// pairs that are each other's nearest merge. Ward's criterion is reducible (a merge brings nothing
// nearer), so this is the same hierarchy as by merging the cheapest pair of all, in a few dozen
// rounds and with memory for the clusters alone (Murtagh 1983; Mullner 2011).
#include "numerics/ward.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/dimensions.h"
#include "cpu/hierarchy.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "cpu/spatial.h"
#include "cpu/trimmed.h"
#include "native.h"
#include "numerics/distance.h"

namespace mdcp {
namespace {

constexpr int kLanes = 8;                // slots of a leaf, and leaves of a group
constexpr int kGroup = kLanes * kLanes;  // slots of a group
constexpr int64_t kBit[kLanes] = {1, 2, 4, 8, 16, 32, 64, 128};
constexpr double kFar = std::numeric_limits<double>::infinity();
constexpr double kFinite = 1e300;  // above every cost of float coordinates
constexpr double kSlack = 1 + 1e-12;
constexpr int32_t kNobody = std::numeric_limits<int32_t>::max();
// Parallel rounds start threads of their own; below this many searches that costs more than it
// saves.
constexpr int64_t kSearchesWorthThreads = 1024;
constexpr int64_t kSearchesPerTask = 128;

// Where coordinate d of a slot or a box stands: those of kLanes neighbours lie side by side, all
// dimensions of them in one run of memory.
MDCP_INLINE int64_t place(int64_t slot, int d, int dimensions) {
    return (slot / kLanes * dimensions + d) * kLanes + slot % kLanes;
}

// Boxes around runs of slots, a multiple of kLanes of them.
struct Boxes {
    std::vector<double> low, high;   // [place]
    std::vector<double> reciprocal;  // [boxes], the largest within

    // All boxes empty.
    void resize(int64_t boxes, int dimensions) {
        low.assign(boxes * dimensions, kFar);
        high.assign(boxes * dimensions, -kFar);
        reciprocal.assign(boxes, 0);
    }
};

// The clusters that still stand, in slots that follow the spatial order of the points. An empty
// slot is infinitely far from everything.
struct Front {
    int64_t used = 0;                  // slots that may hold clusters, a multiple of kLanes
    int64_t alive = 0;                 // clusters that stand
    std::vector<double> coordinates;   // [place] centroids
    std::vector<double> size;          // [capacity] points
    std::vector<double> reciprocal;    // [capacity] 1 / size
    std::vector<double> cost;          // [capacity] of the merge that made it
    std::vector<int32_t> index;        // [capacity] its smallest point, which decides ties
    std::vector<int32_t> node;         // [capacity] its point, or points + position of its merge
    std::vector<int32_t> nearest;      // [capacity] slot; before a search, a guess or kNobody
    std::vector<double> nearest_cost;  // [capacity]
    Boxes leaves, groups;
};

// Of 2 * half lanes.
template <int half = kLanes / 2>
MDCP_INLINE double least_of(const double* lanes) {
    double lower[half];
    MDCP_LANES
    for (int lane = 0; lane < half; ++lane) {
        lower[lane] = lanes[lane + half] < lanes[lane] ? lanes[lane + half] : lanes[lane];
    }
    if constexpr (half > 1) return least_of<half / 2>(lower);
    return lower[0];
}

template <int half = kLanes / 2>
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
    // Bounds kLanes boxes, or slots, by the box `into` of `out`.
    static MDCP_INLINE void bound(const double* low, const double* high, const double* reciprocal,
                                  Boxes& out, int64_t into) {
        for (int d = 0; d < kDimensions; ++d) {
            double top[kLanes];
            MDCP_LANES
            for (int lane = 0; lane < kLanes; ++lane) {
                const double value = high[d * kLanes + lane];
                top[lane] = value < kFar ? value : -kFar;  // an empty slot bounds nothing
            }
            out.low.data()[place(into, d, kDimensions)] = least_of(low + d * kLanes);
            out.high.data()[place(into, d, kDimensions)] = greatest_of(top);
        }
        out.reciprocal.data()[into] = greatest_of(reciprocal);
    }

    static MDCP_INLINE void run(Front* front_pointer, const unsigned char* changed) {
        Front& front = *front_pointer;
        for (int64_t group = 0; group * kGroup < front.used; ++group) {
            const int64_t leaves = group * kLanes;
            bool any = false;
            for (int64_t leaf = leaves; leaf < leaves + kLanes; ++leaf) {
                const int64_t slots = leaf * kLanes;
                unsigned char any_here = 0;
                for (int lane = 0; lane < kLanes; ++lane) any_here |= changed[slots + lane];
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

    static MDCP_INLINE void look_at(const Front& front, int64_t slot, double cost, Search& search) {
        const int32_t index = front.index.data()[slot];
        if (nearer(cost, index, search.best_cost, search.best_index)) {
            search.best_cost = cost;
            search.best_index = index;
            search.best_slot = static_cast<int32_t>(slot);
        }
    }

    // What it costs to merge with each slot of a leaf.
    static MDCP_INLINE void costs_of_leaf(const Front& front, int64_t start, const Search& search,
                                          double* cost) {
        MDCP_LANES
        for (int lane = 0; lane < kLanes; ++lane) {
            cost[lane] = ward_cost(
                squared_distance<kDimensions>(front.coordinates.data() + start * kDimensions + lane,
                                              kLanes, search.at, 1),
                front.reciprocal.data()[start + lane], search.reciprocal);
        }
    }

    // The bit of the slot looked from, 0 if it is not in the leaf.
    static MDCP_INLINE int64_t own_lane(int64_t start, const Search& search) {
        const int64_t lane = search.slot - start;
        return lane >= 0 && lane < kLanes ? int64_t{1} << lane : 0;
    }

    static MDCP_INLINE void look_at_lanes(const Front& front, int64_t start, const double* cost,
                                          double reach, Search& search) {
        int64_t within[kLanes], hits = 0;
        MDCP_LANES
        for (int lane = 0; lane < kLanes; ++lane) {
            within[lane] = cost[lane] <= reach ? kBit[lane] : 0;
        }
        MDCP_LANES
        for (int lane = 0; lane < kLanes; ++lane) hits |= within[lane];
        for (; hits != 0; hits &= hits - 1) {
            const int lane = __builtin_ctzll(hits);
            look_at(front, start + lane, cost[lane], search);
        }
    }

    template <bool own>
    static MDCP_INLINE void look_into_leaf(const Front& front, int64_t leaf, Search& search) {
        const int64_t start = leaf * kLanes;
        double cost[kLanes];
        costs_of_leaf(front, start, search, cost);
        double reach = search.best_cost < kFinite ? search.best_cost : kFinite;
        if constexpr (own) {
            // The least cost of the leaf it begins with saves looking at every lane.
            const int64_t itself = own_lane(start, search);
            MDCP_LANES
            for (int lane = 0; lane < kLanes; ++lane) {
                cost[lane] = kBit[lane] == itself ? kFar : cost[lane];
            }
            const double least = least_of(cost);
            reach = least < reach ? least : reach;
        }
        look_at_lanes(front, start, cost, reach, search);
    }

    // Which of eight boxes may hold something as near as the best, a bit for each.
    static MDCP_INLINE int64_t within_reach(const Boxes& boxes, int64_t start,
                                            const Search& search) {
        // A little too much is looked at, never too little; but nothing that is infinitely far.
        const double reach = search.best_cost < kFinite ? search.best_cost * kSlack : kFinite;
        int64_t within[kLanes];
        MDCP_LANES
        for (int lane = 0; lane < kLanes; ++lane) {
            const double bound = squared_distance_to_box<kDimensions>(
                search.at, 1, boxes.low.data() + start * kDimensions + lane,
                boxes.high.data() + start * kDimensions + lane, kLanes);
            const double limit =
                reach * (search.reciprocal + boxes.reciprocal.data()[start + lane]);
            within[lane] = bound <= limit ? kBit[lane] : 0;
        }
        int64_t hits = 0;
        MDCP_LANES
        for (int lane = 0; lane < kLanes; ++lane) hits |= within[lane];
        return hits;
    }

    static MDCP_INLINE void look_into_group(const Front& front, int64_t group, int64_t but_leaf,
                                            Search& search) {
        int64_t hits = within_reach(front.leaves, group * kLanes, search);
        for (; hits != 0; hits &= hits - 1) {
            const int64_t leaf = group * kLanes + __builtin_ctzll(hits);
            if (leaf != but_leaf) look_into_leaf<false>(front, leaf, search);
        }
    }

    // In so few leaves it takes less time to compute all costs than to find out which to leave out.
    static MDCP_INLINE void look_everywhere(const Front& front, Search& search) {
        double cost[kGroup], least[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) least[lane] = kFinite;
        for (int64_t start = 0; start < front.used; start += kLanes) {
            costs_of_leaf(front, start, search, cost + start);
            const int64_t itself = own_lane(start, search);
            MDCP_LANES
            for (int lane = 0; lane < kLanes; ++lane) {
                const double other = kBit[lane] == itself ? kFar : cost[start + lane];
                cost[start + lane] = other;
                least[lane] = other < least[lane] ? other : least[lane];
            }
        }
        const double reach = least_of(least);
        for (int64_t start = 0; start < front.used; start += kLanes) {
            look_at_lanes(front, start, cost + start, reach, search);
        }
    }

    static MDCP_INLINE void look_around(const Front& front, Search& search) {
        const int32_t guess = front.nearest.data()[search.slot];
        if (guess != kNobody) {
            const double cost = ward_cost(
                squared_distance<kDimensions>(
                    front.coordinates.data() + place(guess, 0, kDimensions), kLanes, search.at, 1),
                front.reciprocal.data()[guess], search.reciprocal);
            look_at(front, guess, cost, search);
        }
        const int64_t own_leaf = search.slot / kLanes, own_group = search.slot / kGroup;
        look_into_leaf<true>(front, own_leaf, search);
        look_into_group(front, own_group, own_leaf, search);
        for (int64_t start = 0; start * kGroup < front.used; start += kLanes) {
            int64_t hits = within_reach(front.groups, start, search);
            for (; hits != 0; hits &= hits - 1) {
                const int64_t group = start + __builtin_ctzll(hits);
                if (group != own_group) look_into_group(front, group, -1, search);
            }
        }
    }

    static MDCP_INLINE void run(Front* front_pointer, const int32_t* slots, int64_t count) {
        Front& front = *front_pointer;
        for (int64_t i = 0; i < count; ++i) {
            Search search;
            search.slot = slots[i];
            search.reciprocal = front.reciprocal.data()[search.slot];
            search.best_cost = kFar;
            search.best_index = search.best_slot = kNobody;
            for (int d = 0; d < kDimensions; ++d) {
                search.at[d] = front.coordinates.data()[place(search.slot, d, kDimensions)];
            }
            if (front.used <= kGroup) {
                look_everywhere(front, search);
            } else {
                look_around(front, search);
            }
            front.nearest.data()[search.slot] = search.best_slot;
            front.nearest_cost.data()[search.slot] = search.best_cost;
        }
    }
};

// A merge as it was found, before the sort by cost.
struct Found {
    double cost;
    int32_t round;
    int32_t absorbed;  // the larger of the two clusters' indices, unique among all merges
    int32_t a, b;      // nodes
    int32_t size;
};

class Rounds {
  public:
    Rounds(const float* points, int64_t count, int32_t dimensions,
           const std::vector<int32_t>& order, Execution execution)
        : points_(points), count_(count), given_(dimensions), execution_(execution) {
        dimensions_ = kernel_dimensions(dimensions);
        place_points(order);
    }

    std::vector<Found> run() {
        found_.reserve(count_ - 1);
        search_from_.resize(count_);
        std::iota(search_from_.begin(), search_from_.end(), 0);
        search();
        merge_duplicates();
        while (front_.alive > 1) {
            if (!merge_reciprocal_pairs()) {
                // Rounding left a cluster with an outdated idea of its nearest. After a search from
                // everywhere there is always a pair: the smallest index of the cheapest cost.
                list_all();
                search();
                continue;
            }
            if (front_.alive <= front_.used * 3 / 4) {
                compact();
            } else {
                bound_changed();
            }
            search();
        }
        return std::move(found_);
    }

  private:
    void place_points(const std::vector<int32_t>& order) {
        Front& f = front_;
        f.alive = count_;
        f.used = (count_ + kLanes - 1) / kLanes * kLanes;
        const int64_t capacity = (count_ + kGroup - 1) / kGroup * kGroup;
        f.coordinates.assign(capacity * dimensions_, kFar);
        f.size.assign(capacity, 0);
        f.reciprocal.assign(capacity, 0);
        f.cost.assign(capacity, 0);
        f.index.assign(capacity, kNobody);
        f.node.assign(capacity, kNobody);
        f.nearest.assign(capacity, kNobody);
        f.nearest_cost.assign(capacity, kFar);
        f.leaves.resize(capacity / kLanes, dimensions_);
        f.groups.resize((capacity / kGroup + kLanes - 1) / kLanes * kLanes, dimensions_);
        for (int64_t slot = 0; slot < count_; ++slot) {
            for (int d = 0; d < given_; ++d) {
                at(front_, d, slot) = points_[order[slot] * int64_t{given_} + d];
            }
            for (int d = given_; d < dimensions_; ++d) at(front_, d, slot) = 0;
            front_.size[slot] = front_.reciprocal[slot] = 1;
            front_.index[slot] = front_.node[slot] = order[slot];
        }
        bound_all();
    }

    double& at(Front& front, int d, int64_t slot) const {
        return front.coordinates[place(slot, d, dimensions_)];
    }

    // Bounds the leaves and groups of changed_ slots.
    void bound_changed() {
        if (front_.used <= kGroup) return;  // whose searches look everywhere
        dispatch_dimensions<Bounds>(dimensions_, execution_.simd, &front_,
                                    static_cast<const unsigned char*>(changed_.data()));
    }

    void bound_all() {
        changed_.assign(front_.index.size(), 1);
        bound_changed();
    }

    void search() {
        if (front_.alive < 2) return;
        const int64_t count = static_cast<int64_t>(search_from_.size());
        if (execution_.threads > 1 && count >= kSearchesWorthThreads) {
            const int64_t tasks = (count + kSearchesPerTask - 1) / kSearchesPerTask;
            parallel_for(tasks, execution_.threads, [&](int, int64_t task) {
                const int64_t start = task * kSearchesPerTask;
                search_some(search_from_.data() + start, std::min(kSearchesPerTask, count - start));
            });
        } else {
            search_some(search_from_.data(), count);
        }
    }

    void search_some(const int32_t* slots, int64_t count) {
        dispatch_dimensions<Nearest>(dimensions_, execution_.simd, &front_, slots, count);
    }

    // Joins the clusters of two slots in the first, whose index is the smaller.
    void merge(int32_t keep, int32_t drop, double cost) {
        Front& f = front_;
        cost =
            std::max({cost, f.cost[keep], f.cost[drop]});  // rounding must not turn the tree over
        const double size = f.size[keep] + f.size[drop];
        found_.push_back(
            {cost, round_, f.index[drop], f.node[keep], f.node[drop], static_cast<int32_t>(size)});
        for (int d = 0; d < dimensions_; ++d) {
            at(f, d, keep) =
                merged_centroid(at(f, d, keep), f.size[keep], at(f, d, drop), f.size[drop]);
            at(f, d, drop) = kFar;
        }
        f.size[keep] = size;
        f.reciprocal[keep] = 1 / size;
        f.cost[keep] = cost;
        f.node[keep] = static_cast<int32_t>(count_ + found_.size() - 1);
        f.nearest[keep] = kNobody;
        f.nearest[drop] = keep;
        f.reciprocal[drop] = 0;
        f.index[drop] = kNobody;
        --f.alive;
    }

    // Equal points would merge one pair a round: the smallest index is the nearest of all others.
    void merge_duplicates() {
        std::vector<int32_t> slots;
        for (int64_t slot = 0; slot < count_; ++slot) {
            if (front_.nearest_cost[slot] == 0) slots.push_back(static_cast<int32_t>(slot));
        }
        if (slots.empty()) return;
        const auto compare = [&](int32_t a, int32_t b) {
            for (int d = 0; d < given_; ++d) {
                const double left = at(front_, d, a), right = at(front_, d, b);
                if (left != right) return left < right ? -1 : 1;
            }
            return 0;
        };
        std::sort(slots.begin(), slots.end(), [&](int32_t a, int32_t b) {
            const int order = compare(a, b);
            return order != 0 ? order < 0 : front_.index[a] < front_.index[b];
        });
        int32_t first = slots[0];
        for (size_t i = 1; i < slots.size(); ++i) {
            if (compare(first, slots[i]) == 0) {
                merge(first, slots[i], 0);
            } else {
                first = slots[i];
            }
        }
        compact();
        list_all();
        search();
    }

    void list_all() {
        search_from_.clear();
        for (int64_t slot = 0; slot < front_.used; ++slot) {
            if (front_.index[slot] != kNobody) search_from_.push_back(static_cast<int32_t>(slot));
        }
    }

    // Lists the clusters that must look again: the merged ones and those that lost their nearest.
    bool merge_reciprocal_pairs() {
        ++round_;
        Front& f = front_;
        const size_t before = found_.size();
        changed_.assign(f.index.size(), 0);
        for (int64_t slot = 0; slot < f.used; ++slot) {
            if (f.index[slot] == kNobody || changed_[slot]) continue;
            const int32_t other = f.nearest[slot];
            if (f.nearest[other] != slot || other < slot) continue;
            const int32_t own = static_cast<int32_t>(slot);
            changed_[slot] = changed_[other] = 1;
            if (f.index[own] < f.index[other]) {
                merge(own, other, f.nearest_cost[slot]);
            } else {
                merge(other, own, f.nearest_cost[slot]);
            }
        }
        if (found_.size() == before) return false;
        search_from_.clear();
        for (int64_t slot = 0; slot < f.used; ++slot) {
            if (f.index[slot] == kNobody) continue;
            const int32_t lost = f.nearest[slot];
            if (!changed_[slot] && !changed_[lost]) continue;
            search_from_.push_back(static_cast<int32_t>(slot));
            // The search begins with what became of the nearest.
            if (!changed_[slot] && f.index[lost] == kNobody) f.nearest[slot] = f.nearest[lost];
        }
        return true;
    }

    // Closes the gaps that merged clusters left.
    void compact() {
        Front& f = front_;
        moved_.assign(f.used, kNobody);
        int32_t next = 0;
        for (int64_t slot = 0; slot < f.used; ++slot) {
            if (f.index[slot] == kNobody) continue;
            moved_[slot] = next;
            for (int d = 0; d < dimensions_; ++d) at(f, d, next) = at(f, d, slot);
            f.size[next] = f.size[slot];
            f.reciprocal[next] = f.reciprocal[slot];
            f.cost[next] = f.cost[slot];
            f.index[next] = f.index[slot];
            f.node[next] = f.node[slot];
            f.nearest[next] = f.nearest[slot];
            f.nearest_cost[next] = f.nearest_cost[slot];
            ++next;
        }
        for (int64_t slot = next; slot < f.used; ++slot) {
            for (int d = 0; d < dimensions_; ++d) at(f, d, slot) = kFar;
            f.reciprocal[slot] = 0;
            f.index[slot] = kNobody;
        }
        for (int32_t slot = 0; slot < next; ++slot) {
            // A neighbour that is gone is searched for anew.
            if (f.nearest[slot] != kNobody) f.nearest[slot] = moved_[f.nearest[slot]];
        }
        for (int32_t& slot : search_from_) slot = moved_[slot];
        bound_all();  // the boxes that are left empty, too
        f.used = (f.alive + kLanes - 1) / kLanes * kLanes;
    }

    const float* points_;  // [count_, given_]
    int64_t count_;
    int32_t given_;       // dimensions of the points
    int32_t dimensions_;  // the next kernel's: zeros fill the rest
    Execution execution_;
    int32_t round_ = 0;
    Front front_;
    std::vector<Found> found_;
    std::vector<int32_t> search_from_;
    std::vector<unsigned char> changed_;
    std::vector<int32_t> moved_;  // slots' new places
};

}  // namespace

std::vector<Merge> ward_hierarchy(const float* points, int64_t count, int32_t dimensions,
                                  const std::vector<int32_t>& order, Execution execution) {
    if (count < 2) return {};
    const std::vector<Found> found = Rounds(points, count, dimensions, order, execution).run();

    // Children before parents: they cost no more, and come from an earlier round or, among equal
    // points, absorbed a smaller index.
    std::vector<int32_t> rows(found.size());
    std::iota(rows.begin(), rows.end(), 0);
    std::sort(rows.begin(), rows.end(), [&](int32_t left, int32_t right) {
        const Found &a = found[left], &b = found[right];
        if (a.cost != b.cost) return a.cost < b.cost;
        return a.round != b.round ? a.round < b.round : a.absorbed < b.absorbed;
    });
    std::vector<int32_t> row_of(found.size());
    for (size_t row = 0; row < rows.size(); ++row) row_of[rows[row]] = static_cast<int32_t>(row);

    const int32_t points_count = static_cast<int32_t>(count);
    const auto cluster = [&](int32_t node) {
        return node < points_count ? node : points_count + row_of[node - points_count];
    };
    std::vector<Merge> merges(found.size());
    for (size_t row = 0; row < rows.size(); ++row) {
        const Found& one = found[rows[row]];
        const int32_t a = cluster(one.a), b = cluster(one.b);
        merges[row] = {std::min(a, b), std::max(a, b), one.size, one.cost};
    }
    return merges;
}

void ward(const float* points, const int64_t* offsets, int64_t problems, int32_t dimensions,
          double* linkage, Execution execution) {
    std::vector<int64_t> order(problems), row(problems + 1, 0);
    std::iota(order.begin(), order.end(), 0);
    const auto size = [&](int64_t problem) { return offsets[problem + 1] - offsets[problem]; };
    for (int64_t p = 0; p < problems; ++p) row[p + 1] = row[p] + std::max<int64_t>(size(p) - 1, 0);
    // The largest first, so that none is left over when the others are done.
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return size(a) > size(b); });
    const int inner = std::max<int>(1, execution.threads / std::max<int64_t>(problems, 1));
    parallel_for(problems, execution.threads, [&](int, int64_t item) {
        const int64_t problem = order[item];
        const int64_t count = size(problem);
        const float* given = points + offsets[problem] * dimensions;
        const Trimmed own(given, count, dimensions, used_dimensions(given, count, dimensions));
        const std::vector<Merge> merges = ward_hierarchy(
            own.points, count, own.dimensions, spatial_order(own.points, count, own.dimensions),
            {inner, execution.simd});
        double* out = linkage + 4 * row[problem];
        for (const Merge& merge : merges) {
            *out++ = merge.first;
            *out++ = merge.second;
            *out++ = ward_height(merge.cost);
            *out++ = merge.size;
        }
    });
}

}  // namespace mdcp
