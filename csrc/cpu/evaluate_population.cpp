#include "ops/evaluate_population.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/parallel.h"

namespace mdcp::cpu {

bool evaluate_population(const EvaluatePopulationProblem& in, const EvaluatePopulationResult& out,
                         Execution execution) {
    constexpr int64_t kBlock = 32;  // candidates a thread takes at a time
    const int64_t axes = in.axes;
    const int64_t total = in.runs * in.candidates;
    const double ceiling = largest_loss(in.loss, in.loss_offsets, axes);
    const int64_t blocks = (total + kBlock - 1) / kBlock;
    std::atomic<bool> within{true};
    parallel_for(blocks, execution.threads, [&](int, int64_t block) {
        std::vector<int64_t> count(in.cost.counts);
        const int64_t end = std::min(total, (block + 1) * kBlock);
        for (int64_t i = block * kBlock; i < end; ++i) {
            const int64_t* widths = in.population + i * axes;
            for (int64_t a = 0; a < axes; ++a) {
                if (widths[a] < 1 || widths[a] > in.loss_offsets[a + 1] - in.loss_offsets[a]) {
                    within = false;
                    return;
                }
            }
            const int64_t* limits = in.limits + i / in.candidates * in.cost.costs;
            out.fitness[i] = candidate_fitness(widths, axes, in.loss, in.loss_offsets, in.cost,
                                               limits, ceiling, count.data());
        }
    });
    return within;
}

}  // namespace mdcp::cpu
