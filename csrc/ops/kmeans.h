// k-means for many jobs over many problems: seeds, then Lloyd's iteration.
#pragma once

#include <cstdint>

#include "ops/execution.h"

namespace mdcp {

struct KMeansProblem {
    enum Init : int32_t { kWard = 0, kPlusPlus = 1, kGiven = 2 };
    const float* points;     // [offsets[problems], dimensions], finite
    const int64_t* offsets;  // [problems + 1]
    int64_t problems;
    int32_t dimensions;
    const int64_t* k;        // [jobs] from 1 to the size of the job's problem
    const int64_t* problem;  // [jobs]
    int64_t jobs;
    Init init;
    const float* centers;  // [sum of k, dimensions], finite; read for kGiven only
    int64_t max_iter;      // at least 0
    uint64_t seed;         // of k-means++
};

struct KMeansResult {
    const int64_t* offsets;  // IN [jobs + 1] where the labels of each job stand
    int64_t* labels;         // OUT [offsets[jobs]]
    float* centers;          // OUT [sum of k, dimensions]
    double* inertia;         // OUT [jobs]
    int64_t* iterations;     // OUT [jobs]
};

namespace cpu {

void kmeans(const KMeansProblem& in, const KMeansResult& out, Execution execution);

}  // namespace cpu

namespace cuda {

// Of `in`, the points and the centres are the device's memory, all else is the host's; of `out` all
// is the device's, and `offsets` is not read.
void kmeans(const KMeansProblem& in, const KMeansResult& out, const Execution& execution);
int64_t kmeans_tables(const KMeansProblem& in, int64_t* tables);
int64_t kmeans_workspace(const KMeansProblem& in);

}  // namespace cuda
}  // namespace mdcp
