// Every entry point of the native core: plain pointers and sizes, no Python, no torch.
// Arguments are checked by the callers in mdcp_fast/ops; a shape stands beside every pointer.
#pragma once

#include <cstdint>

#include "numerics/evaluate_population.h"

namespace mdcp {

// How much of the machine one call may use. No answer depends on it.
struct Execution {
    int threads;  // at least 1
    int simd;     // a level of cpu/simd.h, never above simd_best()
};

int simd_best();          // the highest level this processor runs
int cuda_device_count();  // devices that a CUDA build can use, 0 without a driver; CUDA builds only

// Fitness of every candidate of every run; see candidate_fitness in numerics/evaluate_population.h.
// False, and not all of it, if a width is not from 1 to its axis's channels.
bool evaluate_population(const int64_t* population,  // [runs, candidates, axes]
                         int64_t runs, int64_t candidates, int64_t axes,
                         const double* loss,           // [sum of channels]
                         const int64_t* loss_offsets,  // [axes + 1]
                         const Cost& cost,             //
                         const int64_t* limits,        // [runs, costs], each at least 1
                         double* fitness,              // OUT [runs, candidates]
                         Execution how);

// The same on a device: all pointers are its own, the work is left to the stream. CUDA builds only.
void evaluate_population_cuda(const int64_t* population,  // [runs, candidates, axes]
                              int64_t runs, int64_t candidates, int64_t axes,
                              const double* loss,           // [sum of channels]
                              const int64_t* loss_offsets,  // [axes + 1]
                              const Cost& cost,             //
                              const int64_t* limits,        // [runs, costs]
                              double* fitness,              // OUT [runs, candidates]
                              void* workspace, int device, void* stream);
// Bytes of the device's memory that it needs as its workspace.
int64_t evaluate_population_cuda_workspace(int64_t runs, int64_t candidates, int64_t axes,
                                           int64_t counts);

// Random numbers of many runs, each from a generator of its own.
constexpr int64_t kGeneratorWords = 1250;
void random_seed(const int64_t* seeds,     // [runs] of which the lower 32 bits count
                 int64_t runs,             //
                 uint32_t* generators);    // OUT [runs, kGeneratorWords]
void random_uniform(uint32_t* generators,  // IN, OUT [runs, kGeneratorWords]
                    int64_t runs, int64_t count,
                    double* out);  // OUT [runs, count] in [0, 1)

// L-SHADE's state, of runs that advance together; see mdcp_fast/ops/evolution.py. Of each run the
// first n members are alive, n <= population.
struct EvolutionState {
    int64_t *low, *high;                 // [width]
    double *bottom, *top;                // [width] bounds of the genotypes
    double *members, *trials;            // [runs, population, width]
    double* scores;                      // [runs, population] fitness of the members
    double *scales, *rates;              // [runs, population] what the trials were made with
    double* archive;                     // [runs, archive_rows, width]
    int64_t* archived;                   // [runs] rows in use
    double *scale_memory, *rate_memory;  // [runs, history]
    int64_t* slot;                       // [runs] the entry of the memories to write next
    int64_t runs, population, width, archive_rows, history;
};
constexpr int64_t kMutationChances = 7;  // random numbers of a trial besides its crossover's

// The trials, rounded to what is evaluated.
void evolution_round(const EvolutionState& state, int64_t n,
                     int64_t* candidates);  // OUT [runs, n, width]
// A trial for every member: current-to-pbest/1/bin, pbest one of the `greedy` best members.
void evolution_mutate(const EvolutionState& state, int64_t n, int64_t greedy,
                      const double* chance,   // [runs, n, kMutationChances + width] in [0, 1)
                      const double* normal);  // [runs, n]
// Archives the members that were beaten, and learns from the scales and rates that beat them.
void evolution_remember(const EvolutionState& state, int64_t n,
                        int64_t capacity,       // rows of the archive that may be in use
                        const double* fitness,  // [runs, n] of the trials, no NaN
                        const double* keys);    // [runs, capacity + n]: the largest leave
// Trials that are no worse take the place of their members.
void evolution_take(const EvolutionState& state, int64_t n,
                    const double* fitness,  // [runs, n] of the trials, no NaN
                    int64_t* best,          // IN, OUT [runs, width] the best candidates so far
                    double* best_fitness);  // IN, OUT [runs]
// The best `left` members stay, and `capacity` rows of the archive.
void evolution_shrink(const EvolutionState& state, int64_t n, int64_t left, int64_t capacity);

// Random moves of one or two coordinates from the starts, kept within the bounds.
void descent_moves(const int64_t* start,  // [runs, width] within the bounds
                   int64_t runs, int64_t moves, int64_t width,
                   const int64_t* low,    // [width]
                   const int64_t* high,   // [width]
                   int64_t octaves,       // steps are powers of two below 2^octaves
                   const double* chance,  // [runs, moves, 5] in [0, 1)
                   int64_t* candidates);  // OUT [runs, moves, width]
// Takes each run's best move if it goes downhill. A run ends when it was idle, without one that
// did, `patience` times on end; false when all have.
bool descent_take(const int64_t* candidates,  // [runs, moves, width]
                  const double* fitness,      // [runs, moves], no NaN
                  int64_t runs, int64_t moves, int64_t width, int64_t patience,
                  int64_t* best,         // IN, OUT [runs, width]
                  double* best_fitness,  // IN, OUT [runs]
                  int64_t* idle);        // IN, OUT [runs]

// One tensor of weights, read as rows.
struct WeightTensor {
    enum Type : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };
    int64_t address;  // of [rows, row_length] weights of the type
    int64_t type;
    int64_t rows;
    int64_t row_length;  // at least 1 where there are rows
};

// Mean, population variance and cosine distance to the all-ones vector of every row of every
// tensor. Returns the first tensor with a mean or variance that is not a finite float (one of its
// weights is not, or they are enormous), -1 if there is none.
int64_t channel_statistics(const WeightTensor* tensors,  // [tensor_count]
                           int64_t tensor_count,
                           float* out,  // OUT [rows of all tensors, 3]
                           Execution how);

// NSGA-II crowding distance of every point within its segment.
void crowding_distance(const float* points,     // [offsets[segments], dimensions], finite
                       const int64_t* offsets,  // [segments + 1]
                       int64_t segments, int32_t dimensions,
                       float* out,  // OUT [offsets[segments]]
                       Execution how);

// What the same takes on a device; CUDA builds only.
struct CrowdingPlan {
    int64_t tasks;            // rows of the table, blocks of the first launch
    int64_t spread_tasks;     // further rows, blocks of the second launch, if any
    int64_t shared_bytes;     // of a block of the first
    int64_t workspace_bytes;  // scratch memory of the device
};
constexpr int64_t kCrowdingTaskNumbers = 5;

CrowdingPlan crowding_distance_cuda_plan(const int64_t* offsets,  // [segments + 1], of the host
                                         int64_t segments, int32_t dimensions,
                                         int64_t* tasks);  // OUT [rows, 5], of the host; or null

// Pointers are the device's; the work is left to the stream.
void crowding_distance_cuda(const float* points,     // [point_count, dimensions], finite
                            const int64_t* offsets,  // [segments + 1]
                            int64_t point_count, int32_t dimensions,
                            const int64_t* tasks,  // [rows, 5], as the plan filled it
                            const CrowdingPlan& plan,
                            float* out,  // OUT [point_count]
                            void* workspace, int device, void* stream);

// Ward's hierarchy of every problem: the rows of scipy.cluster.hierarchy.linkage, one problem's
// after the other's, cluster ids local to the problem.
void ward(const float* points,     // [offsets[problems], dimensions], finite
          const int64_t* offsets,  // [problems + 1]
          int64_t problems, int32_t dimensions,
          double* linkage,  // OUT [sum of max(problem size - 1, 0), 4]
          Execution how);

// The same on a device, on a stream. `offsets` is memory of the host; everything else is the
// device's: points, linkage, `tables` (filled from what ward_cuda_tables wrote) and
// ward_cuda_workspace bytes of scratch memory. CUDA builds only.
void ward_cuda(const float* points,     // [offsets[problems], dimensions], finite
               const int64_t* offsets,  // [problems + 1]
               const int64_t* tables,   // [ward_cuda_tables]
               int64_t problems, int32_t dimensions,
               double* linkage,  // OUT [sum of max(problem size - 1, 0), 4]
               void* workspace, int device, void* stream);
// Writes the tables, unless null, and returns how many numbers they have.
int64_t ward_cuda_tables(const int64_t* offsets, int64_t problems, int64_t* tables);
int64_t ward_cuda_workspace(const int64_t* offsets, int64_t problems, int32_t dimensions);

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

// Seeds, then Lloyd's iteration, for every job.
void kmeans(const KMeansProblem& in, const KMeansResult& out, Execution how);

// The same on a device, on a stream. Of `in`, the points and the centres are the device's memory,
// all else is the host's; of `out` all is the device's, and `offsets` is not read. `tables` is
// filled from what kmeans_cuda_tables wrote, the workspace has kmeans_cuda_workspace bytes. CUDA
// builds only.
void kmeans_cuda(const KMeansProblem& in, const KMeansResult& out, const int64_t* tables,
                 void* workspace, int device, void* stream);
// Writes the tables, unless null, and returns how many numbers they have.
int64_t kmeans_cuda_tables(const KMeansProblem& in, int64_t* tables);
int64_t kmeans_cuda_workspace(const KMeansProblem& in);

}  // namespace mdcp
