// Fitness of every candidate of every run; see candidate_fitness in numerics/evaluate_population.h.
#pragma once

#include <cstdint>

#include "numerics/evaluate_population.h"
#include "ops/execution.h"

namespace mdcp {

struct EvaluatePopulationProblem {
    const int64_t* population;  // [runs, candidates, axes]
    int64_t runs, candidates, axes;
    const double* loss;           // [sum of channels]
    const int64_t* loss_offsets;  // [axes + 1]
    Cost cost;
    const int64_t* limits;  // [runs, costs], each at least 1
};

struct EvaluatePopulationResult {
    double* fitness;  // OUT [runs, candidates]
};

namespace cpu {

// False, and not all of it, if a width is not from 1 to its axis's channels.
bool evaluate_population(const EvaluatePopulationProblem& in, const EvaluatePopulationResult& out,
                         Execution execution);

}  // namespace cpu

namespace cuda {

// All memory is the device's, and every width is one of its axis.
void evaluate_population(const EvaluatePopulationProblem& in, const EvaluatePopulationResult& out,
                         const Execution& execution);
int64_t evaluate_population_workspace(const EvaluatePopulationProblem& in);

}  // namespace cuda
}  // namespace mdcp
