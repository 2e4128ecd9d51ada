// Lloyd's iteration on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "numerics/fixed.h"

namespace mdcp::cuda {

constexpr int64_t kLloydTile = 512;  // points that a block of a launch by tiles has

// A row of a table made on the host.
struct LloydJob {
    int64_t index;    // of the job in the caller's order
    int64_t problem;  // which its points are
    int64_t first;    // of the problem's points
    int64_t count;    // points
    int64_t k;        // clusters
    int64_t row;      // of its first centre among those of all jobs
    int64_t label;    // of its first point's among those of all jobs
    int64_t seed;     // of its problem's first among the seeds of k-means++
};

struct LloydTile {
    int64_t job;    // row of the table of jobs
    int64_t begin;  // of the tile's points, within the problem
};

// The clusters of all jobs, and what labels each point has in each.
struct Lloyd {
    const float* points;      // [points, dimensions]
    int32_t dimensions;       //
    int64_t point_count;      //
    int64_t rows;             // clusters of all jobs
    const LloydJob* jobs;     // those with most work first
    float* scaled;            // [padded dimensions, points], see kmeans_scale
    double* scale;            // [problems]
    float* at;                // [padded dimensions, rows] scaled centres
    float* before;            // as `at`: where they were at the last iteration 16, 32, 64, ...
    unsigned long long* sum;  // [rows, dimensions] of the points' fixed-point coordinates
    int32_t* size;            // [rows] points
    int32_t* state;           // [rows] LloydState
    int32_t* moved;           // [rows] the clusters of a job that moved, in any order
    float* distance;          // [labels] to the centre of the label, squared
    int64_t* labels;          // [labels]
};

// What a cluster's centre did since points were assigned last.
enum LloydState : int32_t { kLloydStays, kLloydMoved, kLloydRelocated };

// Moves a point from the sums of one cluster to those of another. Below 0: none.
__device__ __forceinline__ void lloyd_account(const Lloyd& data, const LloydJob& job, int32_t point,
                                              int64_t from, int64_t to) {
    for (int d = 0; d < data.dimensions; ++d) {
        const int64_t fixed = to_fixed(data.scaled[d * data.point_count + job.first + point]);
        if (from >= 0) {
            atomicAdd(data.sum + (job.row + from) * data.dimensions + d,
                      static_cast<unsigned long long>(-fixed));
        }
        atomicAdd(data.sum + (job.row + to) * data.dimensions + d,
                  static_cast<unsigned long long>(fixed));
    }
    if (from >= 0) atomicAdd(data.size + job.row + from, -1);
    atomicAdd(data.size + job.row + to, 1);
}

// Assigns all points of all tiles to their nearest centres. Where they are `accounted`, their
// labels are those of clusters whose sums hold them.
void launch_lloyd_assign(const Lloyd& data, const LloydTile* tiles, int64_t tile_count,
                         bool accounted, cudaStream_t stream);

// Iterates every job to its end, and writes the answers.
void launch_lloyd_finish(const Lloyd& data, int64_t jobs, int64_t max_iter,
                         float* centers,       // OUT [rows, dimensions]
                         double* inertia,      // OUT [jobs]
                         int64_t* iterations,  // OUT [jobs]
                         cudaStream_t stream);

}  // namespace mdcp::cuda
