// Ward's hierarchies by rounds of reciprocal nearest neighbours, bit for bit those of
// cpu/hierarchy.cpp.
//
// A round is a search (a warp looks for a cluster's nearest among all others, where that may have
// changed) and a step (a block merges all pairs that are each other's nearest and closes the gaps
// that they leave). The first search goes over all problems at once, by tiles of clusters. The
// first rounds of large problems, which have most of the work, are pairs of launches too: searches
// by tiles, steps by one block a problem. Then one block a problem runs all rounds that are left,
// however many there are. At last merges are ranked by their costs, by tiles.
//
// Clusters keep the order of their smallest points, so among equally near ones the first is the
// nearest.
#include <limits>

#include "cuda/dimensions.cuh"
#include "cuda/hierarchy.cuh"
#include "cuda/launch.cuh"
#include "numerics/distance.h"
#include "numerics/ward.h"

namespace mdcp::cuda {

constexpr int kWardThreads = 256;    // of a block that finishes a large problem
constexpr int kWardFewThreads = 64;  // or a small one
constexpr int kWardWideRounds = 6;   // of the large problems that several blocks share
constexpr int kWardTileThreads = 256;
constexpr int32_t kWardUnknown = -1;  // a nearest cluster that is to be searched for
constexpr int32_t kWardNobody = std::numeric_limits<int32_t>::max();
constexpr double kWardFar = std::numeric_limits<double>::infinity();

struct WardCluster {
    double cost;  // of the merge that made it
    double nearest_cost;
    int32_t size;     // points
    int32_t index;    // the smallest of its points
    int32_t node;     // a point, or the problem's size + the point its merge absorbed
    int32_t nearest;  // position of the nearest cluster, or kWardUnknown
};

// The clusters that stand. Two of these take turns: a step writes what is left into the other.
struct WardFront {
    WardCluster* clusters;  // [points of all problems]
    double* coordinates;    // [padded dimensions, points of all problems] centroids
    double* reciprocal;     // [points of all problems] of the size
};

struct WardProgress {
    int32_t alive;  // clusters
    int32_t round;  // -1: equal points have not been looked for
    int32_t half;   // which front they stand in
};

struct WardScratch {
    WardFront fronts;        // both, one behind the other
    int64_t points;          // of all problems: the distance of the two
    int32_t* action;         // [points] kWardStays, kWardKeeps or kWardGone
    int32_t* moved;          // [points] where the next front has the cluster
    WardProgress* progress;  // [problems]
    Merges merges;
};

enum WardAction : int32_t { kWardStays, kWardKeeps, kWardGone };

template <int kDimensions>
__device__ __forceinline__ WardFront ward_front(const WardScratch& scratch, int32_t half,
                                                int64_t first) {
    const int64_t at = half * scratch.points + first;
    const WardFront& all = scratch.fronts;
    return {all.clusters + at, all.coordinates + half * scratch.points * kDimensions + first,
            all.reciprocal + at};
}

// The nearest cluster of one, by a warp.
template <int kDimensions>
__device__ __forceinline__ void ward_search(const WardFront& front, int64_t stride, int32_t alive,
                                            int32_t own) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    double at[kDimensions];
    for (int d = 0; d < kDimensions; ++d) at[d] = front.coordinates[d * stride + own];
    const double reciprocal = front.reciprocal[own];
    double best_cost = kWardFar;
    int32_t best = kWardNobody;
    for (int32_t other = lane; other < alive; other += kWarp) {
        const double distance =
            squared_distance<kDimensions>(front.coordinates + other, stride, at, 1);
        const double other_reciprocal = front.reciprocal[other];
        // Divides only where the quotient may be below the best: rounding is within the slack.
        const double limit = best_cost * (other_reciprocal + reciprocal) * kWardSlack;
        if (other == own || distance > limit) continue;
        const double cost = ward_cost(distance, other_reciprocal, reciprocal);
        if (cost < best_cost) {
            best_cost = cost;
            best = other;
        }
    }
    warp_nearest(best_cost, best);
    if (lane == 0) {
        front.clusters[own].nearest = best;
        front.clusters[own].nearest_cost = best_cost;
    }
}

// Points that are equal merge into the first of them one after the other, by a warp a point. (By
// pairs that are each other's nearest it would be one a round.) Returns how many merged.
__device__ __forceinline__ int32_t ward_merge_equal_points(const WardFront& front,
                                                           const Merges& merges, int32_t* action,
                                                           int32_t count, int32_t* scratch) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    int32_t merged = 0;
    for (int32_t own = warp; own < count; own += warps) {
        if (front.clusters[own].nearest_cost != 0) {
            if (lane == 0) action[own] = kWardStays;
            continue;
        }
        // The nearest of equal points is the first of them; the first one's is the second.
        const int32_t first = Min()(own, front.clusters[own].nearest);
        int32_t members = 0, before = 0, previous = 0, last = 0;
        for (int32_t other = lane; other < count; other += kWarp) {
            if (front.clusters[other].nearest_cost != 0) continue;
            if (Min()(other, front.clusters[other].nearest) != first) continue;
            ++members;
            before += other < own;
            previous = other < own ? other : previous;
            last = other;
        }
        members = warp_reduce(members, Sum());
        before = warp_reduce(before, Sum());
        previous = warp_reduce(previous, Max());
        last = warp_reduce(last, Max());
        if (lane != 0) continue;
        if (own == first) {
            action[own] = kWardKeeps;
            front.clusters[own].size = members;
            front.reciprocal[own] = 1 / static_cast<double>(members);
            front.clusters[own].node = count + last;
        } else {
            action[own] = kWardGone;
            merges.cost[own] = 0;
            merges.round[own] = 0;
            merges.merge[own] = {previous == first ? first : count + previous, own, before + 1,
                                 first};
            ++merged;
        }
    }
    return block_reduce(merged, Sum(), scratch);
}

// Merges the cluster `drop` into `keep`, whose smallest point is the smaller one.
template <int kDimensions>
__device__ __forceinline__ void ward_merge(const WardFront& front, const Merges& merges,
                                           int64_t stride, int32_t count, int32_t round,
                                           int32_t keep, int32_t drop) {
    WardCluster kept = front.clusters[keep];
    const WardCluster dropped = front.clusters[drop];
    // Rounding must not turn the tree over.
    kept.cost = Max()(Max()(kept.nearest_cost, kept.cost), dropped.cost);
    const int32_t absorbed = dropped.index, size = kept.size + dropped.size;
    merges.cost[absorbed] = kept.cost;
    merges.round[absorbed] = round;
    merges.merge[absorbed] = {kept.node, dropped.node, size, kept.index};
    for (int d = 0; d < kDimensions; ++d) {
        double* const coordinates = front.coordinates + d * stride;
        coordinates[keep] =
            merged_centroid(coordinates[keep], kept.size, coordinates[drop], dropped.size);
    }
    front.reciprocal[keep] = 1 / static_cast<double>(size);
    front.clusters[keep].cost = kept.cost;
    front.clusters[keep].size = size;
    front.clusters[keep].node = count + absorbed;
}

// Merges all pairs that are each other's nearest, a thread a cluster. Returns how many there were.
template <int kDimensions>
__device__ __forceinline__ int32_t ward_merge_pairs(const WardFront& front, const Merges& merges,
                                                    int64_t stride, int32_t* action, int32_t count,
                                                    int32_t alive, int32_t round,
                                                    int32_t* scratch) {
    int32_t merged = 0;
    for (int32_t own = threadIdx.x; own < alive; own += blockDim.x) {
        const int32_t other = front.clusters[own].nearest;
        if (front.clusters[other].nearest != own) {
            action[own] = kWardStays;
        } else if (own > other) {
            action[own] = kWardGone;
        } else {
            action[own] = kWardKeeps;
            ward_merge<kDimensions>(front, merges, stride, count, round, own, other);
            ++merged;
        }
    }
    return block_reduce(merged, Sum(), scratch);
}

// Moves the clusters that are left into the next front, in the same order. Those that merged or
// lost their nearest have to search, or all. Returns how many clusters there are.
template <int kDimensions>
__device__ __forceinline__ int32_t ward_compact(const WardFront& from, const WardFront& to,
                                                int64_t stride, const int32_t* action,
                                                int32_t* moved, int32_t alive, bool all,
                                                int32_t* scratch) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    const unsigned lanes_before = (1u << lane) - 1;
    // Every warp has a run of clusters, and counts what is left of it.
    const int32_t run = static_cast<int32_t>(ceil_div(alive, warps * kWarp)) * kWarp;
    const int32_t begin = Min()(warp * run, alive), end = Min()(begin + run, alive);
    int32_t left = 0;
    for (int32_t start = begin; start < end; start += kWarp) {
        const int32_t own = start + lane;
        left += __popc(__ballot_sync(kAllLanes, own < end && action[own] != kWardGone));
    }
    if (lane == 0) scratch[warp] = left;
    __syncthreads();
    int32_t next = 0, total = 0;
    for (int other = 0; other < warps; ++other) {
        if (other < warp) next += scratch[other];
        total += scratch[other];
    }
    for (int32_t start = begin; start < end; start += kWarp) {
        const int32_t own = start + lane;
        const unsigned stay = __ballot_sync(kAllLanes, own < end && action[own] != kWardGone);
        if (own < end) moved[own] = next + __popc(stay & lanes_before);
        next += __popc(stay);
    }
    __syncthreads();
    for (int32_t own = threadIdx.x; own < alive; own += blockDim.x) {
        if (action[own] == kWardGone) continue;
        const int32_t target = moved[own];
        WardCluster cluster = from.clusters[own];
        const bool known =
            !all && action[own] == kWardStays && action[cluster.nearest] == kWardStays;
        cluster.nearest = known ? moved[cluster.nearest] : kWardUnknown;
        to.clusters[target] = cluster;
        to.reciprocal[target] = from.reciprocal[own];
        for (int d = 0; d < kDimensions; ++d) {
            to.coordinates[d * stride + target] = from.coordinates[d * stride + own];
        }
    }
    return total;
}

// What follows a search: merges, and lists the clusters that must search. By a whole block, which
// has to pass a barrier before it goes on with the clusters; where the kernel ends here, none is
// needed.
template <int kDimensions>
__device__ __forceinline__ WardProgress ward_step(const WardScratch& scratch, int64_t first,
                                                  int32_t count, WardProgress now,
                                                  int32_t* shared) {
    const WardFront front = ward_front<kDimensions>(scratch, now.half, first);
    const Merges merges = ward_merges(scratch.merges, first);
    int32_t* const action = scratch.action + first;
    const bool equal_points = now.round < 0;
    ++now.round;
    const int32_t merged =
        equal_points ? ward_merge_equal_points(front, merges, action, count, shared)
                     : ward_merge_pairs<kDimensions>(front, merges, scratch.points, action, count,
                                                     now.alive, now.round, shared);
    if (merged > 0) {
        const WardFront next = ward_front<kDimensions>(scratch, 1 - now.half, first);
        now.alive =
            ward_compact<kDimensions>(front, next, scratch.points, action, scratch.moved + first,
                                      now.alive, equal_points, shared);
        now.half = 1 - now.half;
    } else if (!equal_points) {
        // Rounding left a cluster with an outdated idea of its nearest. After a search from
        // everywhere there is always a pair: the smallest index of the cheapest cost.
        for (int32_t own = threadIdx.x; own < now.alive; own += blockDim.x) {
            front.clusters[own].nearest = kWardUnknown;
        }
    }
    return now;
}

// Every point a cluster; a thread a point.
template <int kDimensions>
__global__ void __launch_bounds__(kWardTile)
    ward_start(WardProblems problems, WardScratch scratch) {
    const int64_t problem = problems.tile_problem[blockIdx.x];
    const int64_t first = problems.offsets[problem];
    const int32_t count = static_cast<int32_t>(problems.offsets[problem + 1] - first);
    const int32_t own = static_cast<int32_t>(problems.tile_begin[blockIdx.x] + threadIdx.x);
    if (own >= count) return;
    if (own == 0) scratch.progress[problem] = {count, -1, 0};
    const WardFront front = ward_front<kDimensions>(scratch, 0, first);
    for (int d = 0; d < kDimensions; ++d) {
        front.coordinates[d * scratch.points + own] =
            d < problems.dimensions ? problems.points[(first + own) * problems.dimensions + d] : 0;
    }
    front.reciprocal[own] = 1;
    front.clusters[own] = {0, 0, 1, own, own, kWardUnknown};
}

// The search of a round, by tiles of clusters. At least 2 blocks a multiprocessor: left to itself,
// ptxas aims at more on sm_100, and spills.
template <int kDimensions>
__global__ void __launch_bounds__(kWardTileThreads, 2)
    ward_search_tile(WardProblems problems, WardScratch scratch) {
    const int64_t problem = problems.tile_problem[blockIdx.x];
    const int32_t begin = static_cast<int32_t>(problems.tile_begin[blockIdx.x]);
    const WardProgress now = scratch.progress[problem];
    if (now.alive < 2) return;
    const WardFront front = ward_front<kDimensions>(scratch, now.half, problems.offsets[problem]);
    const int32_t end = Min()(begin + kWardTile, now.alive);
    for (int32_t own = begin + static_cast<int32_t>(threadIdx.x) / kWarp; own < end;
         own += kWardTileThreads / kWarp) {
        if (front.clusters[own].nearest != kWardUnknown) continue;
        ward_search<kDimensions>(front, scratch.points, now.alive, own);
    }
}

// The step of a round, a block a problem.
template <int kDimensions>
__global__ void __launch_bounds__(kWardThreads, 1)
    ward_step_problem(WardProblems problems, WardScratch scratch) {
    __shared__ int32_t shared[kWardThreads / kWarp];
    const int64_t problem = problems.order[blockIdx.x];
    const int64_t first = problems.offsets[problem];
    const int32_t count = static_cast<int32_t>(problems.offsets[problem + 1] - first);
    const WardProgress before = scratch.progress[problem];
    if (before.alive < 2) return;
    const WardProgress now = ward_step<kDimensions>(scratch, first, count, before, shared);
    if (threadIdx.x == 0) scratch.progress[problem] = now;
}

// Every round from a problem's first step on, or from where the launches by tiles ended: a block a
// problem, from the problem `skip` of the order on.
template <int kDimensions>
__global__ void __launch_bounds__(kWardThreads, 1)
    ward_finish(WardProblems problems, WardScratch scratch, int64_t skip) {
    __shared__ int32_t shared[kWardThreads / kWarp];
    const int64_t problem = problems.order[skip + blockIdx.x];
    const int64_t first = problems.offsets[problem];
    const int32_t count = static_cast<int32_t>(problems.offsets[problem + 1] - first);
    if (count < 2) return;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int warps = static_cast<int>(blockDim.x) / kWarp;
    WardProgress now = scratch.progress[problem];
    while (now.alive > 1) {
        now = ward_step<kDimensions>(scratch, first, count, now, shared);
        if (now.alive < 2) return;
        __syncthreads();
        const WardFront front = ward_front<kDimensions>(scratch, now.half, first);
        for (int32_t own = warp; own < now.alive; own += warps) {
            if (front.clusters[own].nearest != kWardUnknown) continue;
            ward_search<kDimensions>(front, scratch.points, now.alive, own);
        }
        __syncthreads();
    }
}

// A merge's row is the number of merges that go before it, a warp a merge. Children go before
// parents: they cost no more, and come from an earlier round or, among equal points, absorbed a
// smaller one.
__global__ void __launch_bounds__(kWardTileThreads) ward_rank(WardProblems problems, Merges all) {
    const int64_t problem = problems.tile_problem[blockIdx.x];
    const int64_t first = problems.offsets[problem];
    const int32_t count = static_cast<int32_t>(problems.offsets[problem + 1] - first);
    const int32_t begin = static_cast<int32_t>(problems.tile_begin[blockIdx.x]);
    const int32_t end = Min()(begin + kWardTile, count);
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const Merges merges = ward_merges(all, first);
    for (int32_t own = begin + static_cast<int32_t>(threadIdx.x) / kWarp; own < end;
         own += kWardTileThreads / kWarp) {
        if (own == 0) {
            if (lane == 0) merges.row[0] = count - 1;
            continue;
        }
        const double cost = merges.cost[own];
        const int32_t round = merges.round[own];
        int32_t before = 0;
        for (int32_t other = 1 + lane; other < count; other += kWarp) {
            const double other_cost = merges.cost[other];
            const int32_t other_round = merges.round[other];
            const bool sooner = other_round < round || (other_round == round && other < own);
            before += other_cost < cost || (other_cost == cost && sooner);
        }
        before = warp_reduce(before, Sum());
        if (lane == 0) merges.row[own] = before;
    }
}

Merges launch_hierarchy(const WardPlan& plan, const WardProblems& problems, Workspace& workspace,
                        cudaStream_t stream) {
    const int64_t points = plan.points;
    const Merges merges{workspace.take<Merge>(points), workspace.take<double>(points),
                        workspace.take<int32_t>(points), workspace.take<int32_t>(points)};
    const WardFront fronts{
        workspace.take<WardCluster>(2 * points),
        workspace.take<double>(2 * points * padded_dimensions(problems.dimensions)),
        workspace.take<double>(2 * points)};
    const WardScratch scratch{fronts,
                              points,
                              workspace.take<int32_t>(points),
                              workspace.take<int32_t>(points),
                              workspace.take<WardProgress>(plan.problems),
                              merges};
    if (!workspace.has_memory() || plan.tiles == 0) return merges;
    const auto blocks = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
    with_dimensions(problems.dimensions, [&](auto n) {
        constexpr int kDimensions = decltype(n)::value;
        MDCP_LAUNCH((ward_start<kDimensions>), blocks(plan.tiles), kWardTile, 0, stream, problems,
                    scratch);
        MDCP_LAUNCH((ward_search_tile<kDimensions>), blocks(plan.tiles), kWardTileThreads, 0,
                    stream, problems, scratch);
        for (int round = 0; round < kWardWideRounds && plan.wide > 0; ++round) {
            MDCP_LAUNCH((ward_step_problem<kDimensions>), blocks(plan.wide), kWardThreads, 0,
                        stream, problems, scratch);
            MDCP_LAUNCH((ward_search_tile<kDimensions>), blocks(plan.wide_tiles), kWardTileThreads,
                        0, stream, problems, scratch);
        }
        if (plan.large > 0) {
            MDCP_LAUNCH((ward_finish<kDimensions>), blocks(plan.large), kWardThreads, 0, stream,
                        problems, scratch, 0);
        }
        if (plan.large < plan.problems) {
            MDCP_LAUNCH((ward_finish<kDimensions>), blocks(plan.problems - plan.large),
                        kWardFewThreads, 0, stream, problems, scratch, plan.large);
        }
    });
    MDCP_LAUNCH(ward_rank, blocks(plan.tiles), kWardTileThreads, 0, stream, problems, merges);
    return merges;
}

}  // namespace mdcp::cuda
