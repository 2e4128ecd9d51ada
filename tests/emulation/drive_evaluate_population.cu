// Runs cuda::evaluate_population on small populations and compares it with the CPU's op.
#include <cstdint>
#include <vector>

#include "driver.h"
#include "ops/evaluate_population.h"

using driver::Buffer;

namespace {

// Costs of as many counts as axes, each the sum of two widths, in products of neighbouring counts.
void compare(int64_t runs, int64_t candidates, int64_t axes, bool with_tables,
             driver::Numbers numbers) {
    const auto below = [&](uint32_t bound) { return static_cast<int64_t>(numbers.below(bound)); };
    std::vector<int64_t> loss_bounds{0}, constant, entry_bounds{0}, axis, factor, terms;
    for (int64_t a = 0; a < axes; ++a) {
        loss_bounds.push_back(loss_bounds.back() + 3 + a % 5);
        constant.push_back(below(3));
        for (const int64_t other : {a, (a + 1) % axes}) {
            axis.push_back(other);
            factor.push_back(1 + below(2));
        }
        entry_bounds.push_back(entry_bounds.back() + 2);
        terms.push_back(a);
        terms.push_back((a + 2) % axes);
    }
    std::vector<int64_t> weights, widths, budgets;
    for (int64_t i = 0; i < 2 * axes; ++i) weights.push_back(below(9));
    for (int64_t i = 0; i < runs * candidates * axes; ++i)
        widths.push_back(1 + below(static_cast<uint32_t>(3 + i % axes % 5)));
    for (int64_t i = 0; i < runs * 2; ++i) budgets.push_back(1 + axes * 200 + below(300));
    // Every third count and its neighbour have a table, which belongs to the second cost.
    std::vector<int64_t> table_counts, edge_list, edge_begins{0}, entries, entry_begins{0};
    for (int64_t a = 0; with_tables && a < axes; a += 3) {
        table_counts.insert(table_counts.end(), {a, (a + 1) % axes});
        for (const int64_t list : {2 + a % 3, int64_t{3}}) {
            for (int64_t edge = 1; edge <= list; ++edge) edge_list.push_back(3 * edge);
            edge_begins.push_back(static_cast<int64_t>(edge_list.size()));
        }
        for (int64_t i = 0; i < (2 + a % 3) * 3; ++i) entries.push_back(below(50));
        entry_begins.push_back(static_cast<int64_t>(entries.size()));
    }
    const auto table_count = static_cast<int64_t>(entry_begins.size()) - 1;
    std::vector<double> losses;
    for (int64_t i = 0; i < loss_bounds.back(); ++i) losses.push_back(numbers.below(1000) / 997.0);

    Buffer<int64_t> population(widths), loss_offsets(loss_bounds), limits(budgets);
    Buffer<int64_t> constants(constant), offsets(entry_bounds), axis_of(axis), factors(factor);
    Buffer<int64_t> terms_of(terms), coefficients(weights);
    Buffer<int64_t> tables_of(table_counts), edges(edge_list), edge_offsets(edge_begins);
    Buffer<int64_t> table_offsets(std::vector<int64_t>{0, 0, table_count});
    Buffer<int64_t> values(entries), value_offsets(entry_begins);
    Buffer<double> loss(losses);
    const mdcp::Cost cost{constants.data(),
                          offsets.data(),
                          axis_of.data(),
                          factors.data(),
                          terms_of.data(),
                          coefficients.data(),
                          tables_of.data(),
                          table_offsets.data(),
                          edges.data(),
                          edge_offsets.data(),
                          values.data(),
                          value_offsets.data(),
                          axes,
                          axes,
                          2,
                          table_count};
    const mdcp::EvaluatePopulationProblem in{
        population.data(),   runs, candidates,   axes, loss.data(),
        loss_offsets.data(), cost, limits.data()};
    const auto count = static_cast<size_t>(runs * candidates);
    Buffer<double> expected(count), fitness(count);
    mdcp::cpu::evaluate_population(in, {expected.data()}, {1, 0});
    Buffer<int64_t> workspace(
        static_cast<size_t>(mdcp::cuda::evaluate_population_workspace(in) / 8));
    mdcp::cuda::evaluate_population(in, {fitness.data()}, {nullptr, workspace.data(), 0, nullptr});
    driver::expect(fitness == expected, "fitness over " + std::to_string(axes) + " axes");
}

}  // namespace

int main(int count, char** arguments) {
    return driver::run(count, arguments, [] {
        driver::Numbers numbers(1);
        compare(2, 3, 7, false, numbers);
        compare(2, 3, 7, true, numbers);
        compare(1, 2, 150, true, numbers);
        compare(1, 2, 4000, true, numbers);  // more than fits shared memory
    });
}
