// Ward's hierarchy by rounds of reciprocal nearest neighbours.
//
// In each round every cluster whose neighbourhood changed looks for its nearest cluster, then all
// pairs that are each other's nearest merge. Ward's criterion is reducible (a merge brings nothing
// nearer), so this is the same hierarchy as by merging the cheapest pair of all, in a few dozen
// rounds and with memory for the clusters alone (Murtagh 1983; Mullner 2011).
#include "cpu/hierarchy.h"

#include <algorithm>
#include <numeric>

#include "cpu/dimensions.h"
#include "cpu/parallel.h"
#include "cpu/ward_front.h"
#include "numerics/ward.h"

namespace mdcp::cpu {
namespace {

// Parallel rounds start threads of their own; below this many searches that costs more than it
// saves.
constexpr int64_t kSearchesWorthThreads = 1024;
constexpr int64_t kSearchesPerTask = 128;

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
        WardFront& f = front_;
        f.alive = count_;
        f.used = (count_ + kWardLanes - 1) / kWardLanes * kWardLanes;
        const int64_t capacity = (count_ + kWardGroup - 1) / kWardGroup * kWardGroup;
        f.coordinates.assign(capacity * dimensions_, kWardFar);
        f.size.assign(capacity, 0);
        f.reciprocal.assign(capacity, 0);
        f.cost.assign(capacity, 0);
        f.index.assign(capacity, kWardNobody);
        f.node.assign(capacity, kWardNobody);
        f.nearest.assign(capacity, kWardNobody);
        f.nearest_cost.assign(capacity, kWardFar);
        f.leaves.resize(capacity / kWardLanes, dimensions_);
        f.groups.resize((capacity / kWardGroup + kWardLanes - 1) / kWardLanes * kWardLanes,
                        dimensions_);
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

    double& at(WardFront& front, int d, int64_t slot) const {
        return front.coordinates[ward_place(slot, d, dimensions_)];
    }

    // Bounds the leaves and groups of changed_ slots.
    void bound_changed() {
        if (front_.used <= kWardGroup) return;  // whose searches look everywhere
        bound_front(front_, changed_.data(), dimensions_, execution_.simd);
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
        search_front(front_, slots, count, dimensions_, execution_.simd);
    }

    // Joins the clusters of two slots in the first, whose index is the smaller.
    void merge(int32_t keep, int32_t drop, double cost) {
        WardFront& f = front_;
        cost =
            std::max({cost, f.cost[keep], f.cost[drop]});  // rounding must not turn the tree over
        const double size = f.size[keep] + f.size[drop];
        found_.push_back(
            {cost, round_, f.index[drop], f.node[keep], f.node[drop], static_cast<int32_t>(size)});
        for (int d = 0; d < dimensions_; ++d) {
            at(f, d, keep) =
                merged_centroid(at(f, d, keep), f.size[keep], at(f, d, drop), f.size[drop]);
            at(f, d, drop) = kWardFar;
        }
        f.size[keep] = size;
        f.reciprocal[keep] = 1 / size;
        f.cost[keep] = cost;
        f.node[keep] = static_cast<int32_t>(count_ + found_.size() - 1);
        f.nearest[keep] = kWardNobody;
        f.nearest[drop] = keep;
        f.reciprocal[drop] = 0;
        f.index[drop] = kWardNobody;
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
            if (front_.index[slot] != kWardNobody)
                search_from_.push_back(static_cast<int32_t>(slot));
        }
    }

    // Lists the clusters that must look again: the merged ones and those that lost their nearest.
    bool merge_reciprocal_pairs() {
        ++round_;
        WardFront& f = front_;
        const size_t before = found_.size();
        changed_.assign(f.index.size(), 0);
        for (int64_t slot = 0; slot < f.used; ++slot) {
            if (f.index[slot] == kWardNobody || changed_[slot]) continue;
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
            if (f.index[slot] == kWardNobody) continue;
            const int32_t lost = f.nearest[slot];
            if (!changed_[slot] && !changed_[lost]) continue;
            search_from_.push_back(static_cast<int32_t>(slot));
            // The search begins with what became of the nearest.
            if (!changed_[slot] && f.index[lost] == kWardNobody) f.nearest[slot] = f.nearest[lost];
        }
        return true;
    }

    // Closes the gaps that merged clusters left.
    void compact() {
        WardFront& f = front_;
        moved_.assign(f.used, kWardNobody);
        int32_t next = 0;
        for (int64_t slot = 0; slot < f.used; ++slot) {
            if (f.index[slot] == kWardNobody) continue;
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
            for (int d = 0; d < dimensions_; ++d) at(f, d, slot) = kWardFar;
            f.reciprocal[slot] = 0;
            f.index[slot] = kWardNobody;
        }
        for (int32_t slot = 0; slot < next; ++slot) {
            // A neighbour that is gone is searched for anew.
            if (f.nearest[slot] != kWardNobody) f.nearest[slot] = moved_[f.nearest[slot]];
        }
        for (int32_t& slot : search_from_) slot = moved_[slot];
        bound_all();  // the boxes that are left empty, too
        f.used = (f.alive + kWardLanes - 1) / kWardLanes * kWardLanes;
    }

    const float* points_;  // [count_, given_]
    int64_t count_;
    int32_t given_;       // dimensions of the points
    int32_t dimensions_;  // the next kernel's: zeros fill the rest
    Execution execution_;
    int32_t round_ = 0;
    WardFront front_;
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

}  // namespace mdcp::cpu
