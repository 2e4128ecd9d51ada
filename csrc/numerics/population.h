// What one pruning candidate scores: its losses summed, its costs against the budgets.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MDCP_POPULATION_INLINE __host__ __device__ inline
#else
#define MDCP_POPULATION_INLINE inline
#endif

namespace mdcp {

// Costs as sums of products of two counts; see CostModel in mdcp_fast/ops/population.py.
struct Cost {
    const int64_t* constant;      // [counts]
    const int64_t* offsets;       // [counts + 1]
    const int64_t* axis;          // [entries]
    const int64_t* factor;        // [entries]
    const int64_t* terms;         // [terms, 2]
    const int64_t* coefficients;  // [costs, terms]
    int64_t counts, term_count, costs;
};

// The worst width of every axis together: no candidate's losses add up to more.
MDCP_POPULATION_INLINE double largest_loss(const double* loss, const int64_t* loss_offsets,
                                           int64_t axes) {
    double sum = 0;
    for (int64_t a = 0; a < axes; ++a) {
        double worst = loss[loss_offsets[a]];
        for (int64_t i = loss_offsets[a] + 1; i < loss_offsets[a + 1]; ++i) {
            worst = loss[i] > worst ? loss[i] : worst;
        }
        sum += worst;
    }
    return sum;
}

// Loss of a candidate whose costs keep within the limits; otherwise `ceiling`, the
// largest_loss, plus the excesses as fractions of the limits. The sums run in index order, so that
// every device rounds alike. `count` is scratch memory of cost.counts numbers.
MDCP_POPULATION_INLINE double candidate_fitness(const int64_t* widths,        // [axes]
                                                int64_t axes,                 //
                                                const double* loss,           // [sum of channels]
                                                const int64_t* loss_offsets,  // [axes + 1]
                                                const Cost& cost,             //
                                                const int64_t* limits,        // [costs]
                                                double ceiling, int64_t* count) {
    for (int64_t c = 0; c < cost.counts; ++c) {
        int64_t sum = cost.constant[c];
        for (int64_t j = cost.offsets[c]; j < cost.offsets[c + 1]; ++j) {
            sum += cost.factor[j] * widths[cost.axis[j]];
        }
        count[c] = sum;
    }
    double violation = 0;
    for (int64_t m = 0; m < cost.costs; ++m) {
        const int64_t* coefficient = cost.coefficients + m * cost.term_count;
        int64_t total = 0;
        for (int64_t t = 0; t < cost.term_count; ++t) {
            total += coefficient[t] * count[cost.terms[2 * t]] * count[cost.terms[2 * t + 1]];
        }
        if (total > limits[m]) violation += double(total - limits[m]) / double(limits[m]);
    }
    if (violation > 0) return ceiling + violation;
    double sum = 0;
    for (int64_t a = 0; a < axes; ++a) sum += loss[loss_offsets[a] + widths[a] - 1];
    return sum;
}

}  // namespace mdcp
