// Runs one native op on a fixed input, its name the only argument: for
// benchmarks/speed/instructions.py, which has the instructions below `measured` counted.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "ops/channel_statistics.h"
#include "ops/crowding_distance.h"
#include "ops/evaluate_population.h"
#include "ops/evolution.h"
#include "ops/kmeans.h"
#include "ops/ward.h"

namespace cpu = mdcp::cpu;

namespace {

constexpr cpu::Execution kOneThread{1, 0};

// SplitMix64 (Steele, Lea, Flood 2014): whole numbers, the same everywhere.
class Numbers {
  public:
    uint64_t next() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    int64_t below(int64_t bound) { return static_cast<int64_t>(next() % bound); }
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
    // Near enough to normal: the sum of twelve, less six.
    double normal() {
        double sum = -6.0;
        for (int i = 0; i < 12; ++i) sum += uniform();
        return sum;
    }

  private:
    uint64_t state_ = 0;
};

template <class T, class Make>
std::vector<T> filled(int64_t count, Make make) {
    std::vector<T> values(count);
    for (T& value : values) value = static_cast<T>(make());
    return values;
}

std::vector<int64_t> bounds(const std::vector<int64_t>& sizes) {
    std::vector<int64_t> offsets{0};
    for (const int64_t size : sizes) offsets.push_back(offsets.back() + size);
    return offsets;
}

}  // namespace

// The name that the counting is switched on and off by.
extern "C" __attribute__((noipa)) void measured(const std::function<void()>& work) {
    work();
}

namespace {

void channel_statistics() {
    Numbers numbers;
    using Problem = mdcp::ChannelStatisticsProblem;
    const std::vector<int64_t> types{Problem::kFloat32, Problem::kFloat32, Problem::kFloat32,
                                     Problem::kFloat32, Problem::kFloat16, Problem::kBFloat16};
    const std::vector<int64_t> rows{64, 128, 256, 4096, 64, 64};
    const std::vector<int64_t> row_lengths{147, 1152, 64, 9, 576, 576};
    std::vector<std::vector<uint32_t>> memory;
    std::vector<int64_t> addresses;
    int64_t all_rows = 0;
    for (size_t tensor = 0; tensor < rows.size(); ++tensor) {
        // Of two halves, 0x3c00 to 0x3fff each, every type reads numbers near 1.
        memory.push_back(filled<uint32_t>(rows[tensor] * row_lengths[tensor], [&] {
            return (0x3c003c00u | (numbers.next() & 0x03ff03ffu));
        }));
        addresses.push_back(reinterpret_cast<int64_t>(memory.back().data()));
        all_rows += rows[tensor];
    }
    std::vector<float> out(3 * all_rows);
    const Problem in{addresses.data(), types.data(), rows.data(), row_lengths.data(),
                     static_cast<int64_t>(rows.size())};
    measured([&] { cpu::channel_statistics(in, {out.data()}, kOneThread); });
}

struct Problems {
    std::vector<int64_t> sizes{512, 256, 128, 64, 1, 2};
    std::vector<int64_t> offsets = bounds(sizes);
    int32_t dimensions;
    std::vector<float> points;

    explicit Problems(int32_t dimensions) : dimensions(dimensions) {
        Numbers numbers;
        points = filled<float>(offsets.back() * dimensions, [&] { return numbers.normal(); });
    }
    int64_t count() const { return static_cast<int64_t>(sizes.size()); }
};

void ward() {
    const Problems of(3);
    std::vector<double> linkage(4 * of.offsets.back());
    const mdcp::WardProblem in{of.points.data(), of.offsets.data(), of.count(), of.dimensions};
    measured([&] { cpu::ward(in, {linkage.data()}, kOneThread); });
}

void kmeans(mdcp::KMeansProblem::Init init, int32_t dimensions) {
    const Problems of(dimensions);
    std::vector<int64_t> k, problem, sizes;
    for (int64_t p = 0; p < of.count(); ++p) {
        for (int64_t quarter = 1; quarter <= 3; ++quarter) {
            k.push_back(std::max<int64_t>(1, of.sizes[p] * quarter / 4));
            problem.push_back(p);
            sizes.push_back(of.sizes[p]);
        }
    }
    const std::vector<int64_t> offsets = bounds(sizes), centers = bounds(k);
    const auto jobs = static_cast<int64_t>(k.size());
    std::vector<int64_t> labels(offsets.back()), iterations(jobs);
    std::vector<float> found(centers.back() * dimensions);
    std::vector<double> inertia(jobs);
    const mdcp::KMeansProblem in{of.points.data(),
                                 of.offsets.data(),
                                 of.count(),
                                 dimensions,
                                 k.data(),
                                 problem.data(),
                                 jobs,
                                 init,
                                 nullptr,
                                 100,
                                 7};
    const mdcp::KMeansResult out{offsets.data(), labels.data(), found.data(), inertia.data(),
                                 iterations.data()};
    measured([&] { cpu::kmeans(in, out, kOneThread); });
}

void crowding_distance() {
    Numbers numbers;
    std::vector<int64_t> sizes = filled<int64_t>(100, [&] { return numbers.below(40); });
    sizes.push_back(2000);
    const std::vector<int64_t> offsets = bounds(sizes);
    const auto points = filled<float>(3 * offsets.back(), [&] { return numbers.normal(); });
    std::vector<float> out(offsets.back());
    const mdcp::CrowdingDistanceProblem in{points.data(), offsets.data(),
                                           static_cast<int64_t>(sizes.size()), 3};
    measured([&] { cpu::crowding_distance(in, {out.data()}, kOneThread); });
}

// 53 axes of 17 widths; each layer's cost is the product of two neighbours' widths.
void evaluate_population() {
    constexpr int64_t kAxes = 53, kWidths = 17, kRuns = 2, kCandidates = 256;
    Numbers numbers;
    const std::vector<int64_t> loss_offsets = bounds(std::vector<int64_t>(kAxes, kWidths));
    const auto loss = filled<double>(loss_offsets.back(), [&] { return numbers.uniform(); });
    std::vector<int64_t> constant(kAxes + 1), offsets{0}, axis, factor(kAxes, 1), terms;
    constant[0] = 1;
    for (int64_t a = 0; a < kAxes; ++a) {
        offsets.push_back(a);
        axis.push_back(a);
        terms.insert(terms.end(), {a, a + 1});
    }
    offsets.push_back(kAxes);
    const auto coefficients = filled<int64_t>(kAxes, [&] { return 10 + numbers.below(5000); });
    const std::vector<int64_t> limits(kRuns, 2500 * 81 * kAxes);
    const auto widths =
        filled<int64_t>(kRuns * kCandidates * kAxes, [&] { return 1 + numbers.below(kWidths); });
    mdcp::Cost cost{};
    cost.constant = constant.data();
    cost.offsets = offsets.data();
    cost.axis = axis.data();
    cost.factor = factor.data();
    cost.terms = terms.data();
    cost.coefficients = coefficients.data();
    cost.counts = kAxes + 1;
    cost.term_count = kAxes;
    cost.costs = 1;
    std::vector<double> fitness(kRuns * kCandidates);
    const mdcp::EvaluatePopulationProblem in{widths.data(), kRuns,        kCandidates,
                                             kAxes,         loss.data(),  loss_offsets.data(),
                                             cost,          limits.data()};
    measured([&] { cpu::evaluate_population(in, {fitness.data()}, kOneThread); });
}

// Twenty generations of L-SHADE on a bowl, the population shrinking, then moves of the descent.
void evolution() {
    constexpr int64_t kRuns = 2, kWidth = 53, kPopulation = 64, kArchive = 166, kHistory = 6;
    Numbers numbers;
    const auto uniform = [&] { return numbers.uniform(); };
    std::vector<int64_t> low(kWidth, 1), high(kWidth, 17), archived(kRuns), slot(kRuns);
    std::vector<double> bottom(kWidth, 0.5), top(kWidth, 17.5);
    std::vector<double> members(kRuns * kPopulation * kWidth), scores(kRuns * kPopulation, 1e300);
    std::vector<double> scales(scores.size()), rates(scores.size());
    std::vector<double> archive(kRuns * kArchive * kWidth);
    std::vector<double> scale_memory(kRuns * kHistory, 0.5), rate_memory(kRuns * kHistory, 0.5);
    auto trials = filled<double>(members.size(), [&] { return 0.5 + 17 * numbers.uniform(); });
    const cpu::EvolutionState state{low.data(),
                                    high.data(),
                                    bottom.data(),
                                    top.data(),
                                    members.data(),
                                    trials.data(),
                                    scores.data(),
                                    scales.data(),
                                    rates.data(),
                                    archive.data(),
                                    archived.data(),
                                    scale_memory.data(),
                                    rate_memory.data(),
                                    slot.data(),
                                    kRuns,
                                    kPopulation,
                                    kWidth,
                                    kArchive,
                                    kHistory};
    std::vector<int64_t> best(kRuns * kWidth);
    std::vector<double> best_fitness(kRuns, 1e300);
    const std::vector<int64_t> seeds{0, 1};
    std::vector<uint32_t> generators(kRuns * cpu::kGeneratorWords);
    cpu::random_seed(seeds.data(), kRuns, generators.data());
    int64_t n = kPopulation, capacity = kArchive;
    for (int64_t generation = 0; generation < 20; ++generation) {
        std::vector<double> chance(kRuns * n * (cpu::kMutationChances + kWidth));
        const auto normal = filled<double>(kRuns * n, [&] { return numbers.normal(); });
        const auto keys = filled<double>(kRuns * (capacity + n), uniform);
        std::vector<int64_t> candidates(kRuns * n * kWidth);
        measured([&] {
            cpu::random_uniform(generators.data(), kRuns,
                                static_cast<int64_t>(chance.size()) / kRuns, chance.data());
            if (generation) cpu::evolution_mutate(state, n, 7, chance.data(), normal.data());
            cpu::evolution_round(state, n, candidates.data());
        });
        std::vector<double> fitness(kRuns * n);
        for (int64_t i = 0; i < kRuns * n; ++i) {
            for (int64_t d = 0; d < kWidth; ++d) {
                const auto distance = static_cast<double>(candidates[i * kWidth + d] - d % 17);
                fitness[i] += distance * distance;
            }
        }
        const int64_t left = n - 2, rows = left * kArchive / kPopulation;
        measured([&] {
            if (generation) {
                cpu::evolution_remember(state, n, capacity, fitness.data(), keys.data());
            }
            cpu::evolution_take(state, n, fitness.data(), best.data(), best_fitness.data());
            cpu::evolution_shrink(state, n, left, rows);
        });
        n = left;
        capacity = rows;
    }
    constexpr int64_t kMoves = 512;
    const auto chance = filled<double>(kRuns * kMoves * 5, uniform);
    std::vector<int64_t> candidates(kRuns * kMoves * kWidth);
    measured([&] {
        cpu::descent_moves(best.data(), kRuns, kMoves, kWidth, low.data(), high.data(), 5,
                           chance.data(), candidates.data());
    });
}

struct Op {
    const char* name;
    void (*run)();
};

const Op kOps[] = {
    {"channel_statistics", channel_statistics},
    {"ward", ward},
    {"kmeans, ward", [] { kmeans(mdcp::KMeansProblem::kWard, 3); }},
    {"kmeans, k-means++", [] { kmeans(mdcp::KMeansProblem::kPlusPlus, 3); }},
    {"kmeans, 16 dimensions", [] { kmeans(mdcp::KMeansProblem::kPlusPlus, 16); }},
    {"crowding_distance", crowding_distance},
    {"evaluate_population", evaluate_population},
    {"evolution", evolution},
};

}  // namespace

// Without an argument it names the ops, a line each.
int main(int count, char** arguments) {
    if (count == 1) {
        for (const Op& op : kOps) std::puts(op.name);
        return 0;
    }
    for (const Op& op : kOps) {
        if (std::strcmp(op.name, arguments[1]) == 0) {
            op.run();
            return 0;
        }
    }
    std::fprintf(stderr, "instructions: expected the name of an op, got %s\n", arguments[1]);
    return 2;
}
