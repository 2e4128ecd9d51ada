// How the work on a network's hierarchies is laid out, from the sizes of its problems alone.
#pragma once

#include <cstdint>
#include <vector>

namespace mdcp::cuda {

constexpr int kWardTile = 64;            // clusters or merges that a block of a launch by tiles has
constexpr int64_t kWardFewPoints = 128;  // up to so many, a small block finishes a problem
constexpr int64_t kWardWidePoints = 1024;  // above, the first rounds are spread over blocks

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

}  // namespace mdcp::cuda
