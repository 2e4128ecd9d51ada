// Ward's hierarchies on the device, as the launchers of `ward` and `kmeans` share them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "cuda/workspace.cuh"

namespace mdcp {

constexpr int kWardTile = 64;            // clusters or merges that a block of a launch by tiles has
constexpr int64_t kWardFewPoints = 128;  // up to so many, a small block finishes a problem
constexpr int64_t kWardWidePoints = 1024;  // above, the first rounds are spread over blocks

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

// Problems as the kernels see them.
struct WardProblems {
    const float* points;          // [offsets[problems], dimensions]
    int32_t dimensions;           //
    const int64_t* offsets;       // [problems + 1]
    const int64_t* rows;          // [problems + 1] where each one's rows of the linkage begin
    const int64_t* order;         // [problems] the largest first
    const int64_t* tile_problem;  // [tiles]
    const int64_t* tile_begin;    // [tiles] a point within the problem
};

// What the host decides from the sizes alone.
struct WardPlan {
    WardPlan(const int64_t* offsets, int64_t problems);

    // The tables of WardProblems behind each other, to be copied to the device.
    std::vector<int64_t> tables;
    int64_t points, problems, tiles;
    int64_t wide, wide_tiles;  // problems of which each round takes several blocks: the first ones
    int64_t large;             // problems, the first ones, that one large block finishes

    WardProblems on_device(const float* points, int32_t dimensions, const int64_t* tables) const;
};

// Takes scratch memory from the workspace and launches what fills the merges, in it too. Where the
// workspace has no memory, nothing is launched.
Merges launch_hierarchy(const WardPlan& plan, const WardProblems& problems, Workspace& workspace,
                        cudaStream_t stream);

}  // namespace mdcp
