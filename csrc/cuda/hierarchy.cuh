// Ward's hierarchies on the device, as the launchers of `ward` and `kmeans` share them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/ward_plan.cuh"
#include "cuda/workspace.cuh"

namespace mdcp::cuda {

struct Merge {
    int32_t left;   // a cluster: a point, or the problem's size + the point its merge absorbed
    int32_t right;  // the other cluster
    int32_t size;   // points of the new cluster
    int32_t into;   // the smallest point of the new cluster
};

// The merges of every problem, each at the point that it absorbed: the larger one of the two
// clusters' smallest points. Every point but a problem's first is absorbed once. The points of one
// problem stand together, as they do in the input; clusters and points are numbered within it.
struct Merges {      // all [points]
    Merge* merge;    //
    double* cost;    // what it adds to the sum of squares
    int32_t* round;  // in which it was found, 0 for equal points
    int32_t* row;    // place in the hierarchy; at a problem's first point, its number of merges
};

// Those of the problem whose first point is `first`.
__device__ __forceinline__ Merges ward_merges(const Merges& all, int64_t first) {
    return {all.merge + first, all.cost + first, all.round + first, all.row + first};
}

// Takes scratch memory from the workspace and launches what fills the merges, in it too. Where the
// workspace has no memory, nothing is launched.
Merges launch_hierarchy(const WardPlan& plan, const WardProblems& problems, Workspace& workspace,
                        cudaStream_t stream);

}  // namespace mdcp::cuda
