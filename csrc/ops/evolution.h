// The steps of mdcp_fast/ops/evolution.py between two calls of the evaluator.
#pragma once

#include <cstdint>

namespace mdcp::cpu {

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

}  // namespace mdcp::cpu
