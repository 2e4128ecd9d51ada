// What one pruning candidate scores: its losses summed, its costs against the budgets.
#pragma once

#include <cstdint>

#include "numerics/device.h"

namespace mdcp {

// Costs as sums of products of two counts and of entries of tables; see CostModel in
// mdcp_fast/ops/evaluate_population.py. Without tables, none of what belongs to them is read.
struct Cost {
    const int64_t* constant;       // [counts]
    const int64_t* offsets;        // [counts + 1]
    const int64_t* axis;           // [entries]
    const int64_t* factor;         // [entries]
    const int64_t* terms;          // [terms, 2]
    const int64_t* coefficients;   // [costs, terms]
    const int64_t* tables;         // [tables, 2]
    const int64_t* table_offsets;  // [costs + 1]
    const int64_t* edges;          // [edges]
    const int64_t* edge_offsets;   // [2 * tables + 1]
    const int64_t* values;         // [entries of all tables]
    const int64_t* value_offsets;  // [tables + 1]
    int64_t counts, term_count, costs, table_count;
};

// The worst width of an axis.
MDCP_BOTH double worst_loss(const double* loss, int64_t begin, int64_t end) {
    double worst = loss[begin];
    for (int64_t i = begin + 1; i < end; ++i) worst = loss[i] > worst ? loss[i] : worst;
    return worst;
}

// The worst width of every axis together: no candidate's losses add up to more.
MDCP_BOTH double largest_loss(const double* loss, const int64_t* loss_offsets, int64_t axes) {
    double sum = 0;
    for (int64_t a = 0; a < axes; ++a)
        sum += worst_loss(loss, loss_offsets[a], loss_offsets[a + 1]);
    return sum;
}

// count[c] at the widths of the axes.
MDCP_BOTH int64_t count_positions(const Cost& cost, int64_t c, const int64_t* widths) {
    int64_t sum = cost.constant[c];
    for (int64_t j = cost.offsets[c]; j < cost.offsets[c + 1]; ++j) {
        sum += cost.factor[j] * widths[cost.axis[j]];
    }
    return sum;
}

// What term t adds to cost m. count: [counts].
MDCP_BOTH int64_t cost_of_term(const Cost& cost, int64_t m, int64_t t, const int64_t* count) {
    return cost.coefficients[m * cost.term_count + t] * count[cost.terms[2 * t]] *
           count[cost.terms[2 * t + 1]];
}

// The first of the edges begin..end - 1, at least one, that is not below the number; else the last.
MDCP_BOTH int64_t edge_of(const int64_t* edges, int64_t begin, int64_t end, int64_t number) {
    int64_t first = begin, last = end - 1;
    while (first < last) {
        const int64_t middle = first + (last - first) / 2;
        if (edges[middle] < number) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    return first - begin;
}

// What table t adds to its cost. count: [counts].
MDCP_BOTH int64_t cost_of_table(const Cost& cost, int64_t t, const int64_t* count) {
    const int64_t* const offsets = cost.edge_offsets + 2 * t;
    const int64_t row = edge_of(cost.edges, offsets[0], offsets[1], count[cost.tables[2 * t]]);
    const int64_t column =
        edge_of(cost.edges, offsets[1], offsets[2], count[cost.tables[2 * t + 1]]);
    return cost.values[cost.value_offsets[t] + row * (offsets[2] - offsets[1]) + column];
}

// How far a cost lies above its limit, as a fraction of it.
MDCP_BOTH double excess(int64_t total, int64_t limit) {
    return total > limit ? double(total - limit) / double(limit) : 0.0;
}

MDCP_BOTH double loss_of_width(const double* loss, const int64_t* loss_offsets, int64_t axis,
                               int64_t width) {
    return loss[loss_offsets[axis] + width - 1];
}

// Loss of a candidate whose costs keep within the limits; otherwise `ceiling`, the
// largest_loss, plus the excesses as fractions of the limits. The sums of doubles run in index
// order, so that every device rounds alike. `count` is scratch memory of cost.counts numbers.
MDCP_BOTH double candidate_fitness(const int64_t* widths,        // [axes]
                                   int64_t axes,                 //
                                   const double* loss,           // [sum of channels]
                                   const int64_t* loss_offsets,  // [axes + 1]
                                   const Cost& cost,             //
                                   const int64_t* limits,        // [costs]
                                   double ceiling, int64_t* count) {
    for (int64_t c = 0; c < cost.counts; ++c) count[c] = count_positions(cost, c, widths);
    double violation = 0;
    for (int64_t m = 0; m < cost.costs; ++m) {
        int64_t total = 0;
        for (int64_t t = 0; t < cost.term_count; ++t) total += cost_of_term(cost, m, t, count);
        if (cost.table_count > 0) {
            for (int64_t t = cost.table_offsets[m]; t < cost.table_offsets[m + 1]; ++t) {
                total += cost_of_table(cost, t, count);
            }
        }
        violation += excess(total, limits[m]);
    }
    if (violation > 0) return ceiling + violation;
    double sum = 0;
    for (int64_t a = 0; a < axes; ++a) sum += loss_of_width(loss, loss_offsets, a, widths[a]);
    return sum;
}

}  // namespace mdcp
