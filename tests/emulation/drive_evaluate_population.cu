// Runs cuda::evaluate_population on small populations and compares it with the CPU's op.
#include <cstdint>
#include <vector>

#include "driver.h"
#include "ops/evaluate_population.h"

using driver::Buffer;

namespace {

// Costs of as many counts as axes, each the sum of two widths, in products of neighbouring counts.
void compare(int64_t runs, int64_t candidates, int64_t axes, driver::Numbers numbers) {
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
    std::vector<double> losses;
    for (int64_t i = 0; i < loss_bounds.back(); ++i) losses.push_back(numbers.below(1000) / 997.0);

    Buffer<int64_t> population(widths), loss_offsets(loss_bounds), limits(budgets);
    Buffer<int64_t> constants(constant), offsets(entry_bounds), axis_of(axis), factors(factor);
    Buffer<int64_t> terms_of(terms), coefficients(weights);
    Buffer<double> loss(losses);
    const mdcp::Cost cost{constants.data(),
                          offsets.data(),
                          axis_of.data(),
                          factors.data(),
                          terms_of.data(),
                          coefficients.data(),
                          axes,
                          axes,
                          2};
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
        compare(2, 3, 7, numbers);
        compare(1, 2, 150, numbers);
        compare(1, 2, 4000, numbers);  // more than fits shared memory
    });
}
