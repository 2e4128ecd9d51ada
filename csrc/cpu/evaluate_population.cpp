#include "numerics/evaluate_population.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/parallel.h"
#include "native.h"

namespace mdcp {

bool evaluate_population(const int64_t* population, int64_t runs, int64_t candidates, int64_t axes,
                         const double* loss, const int64_t* loss_offsets, const Cost& cost,
                         const int64_t* limits, double* fitness, Execution how) {
    constexpr int64_t kBlock = 32;  // candidates a thread takes at a time
    const int64_t total = runs * candidates;
    const double ceiling = largest_loss(loss, loss_offsets, axes);
    const int64_t blocks = (total + kBlock - 1) / kBlock;
    std::atomic<bool> within{true};
    parallel_for(blocks, how.threads, [&](int, int64_t block) {
        std::vector<int64_t> count(cost.counts);
        const int64_t end = std::min(total, (block + 1) * kBlock);
        for (int64_t i = block * kBlock; i < end; ++i) {
            const int64_t* widths = population + i * axes;
            for (int64_t a = 0; a < axes; ++a) {
                if (widths[a] < 1 || widths[a] > loss_offsets[a + 1] - loss_offsets[a]) {
                    within = false;
                    return;
                }
            }
            fitness[i] =
                candidate_fitness(widths, axes, loss, loss_offsets, cost,
                                  limits + i / candidates * cost.costs, ceiling, count.data());
        }
    });
    return within;
}

}  // namespace mdcp
