// Runs one native op on a fixed input, its name the only argument: for
// benchmarks/speed/instructions.py, which has the instructions below `measured` counted.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "native.h"

namespace {

constexpr mdcp::Execution kHow{1, 0};

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

void statistics() {
    Numbers numbers;
    struct Shape {
        mdcp::WeightTensor::Type type;
        int64_t rows, row_length;
    };
    const Shape shapes[] = {
        {mdcp::WeightTensor::kFloat32, 64, 147}, {mdcp::WeightTensor::kFloat32, 128, 1152},
        {mdcp::WeightTensor::kFloat32, 256, 64}, {mdcp::WeightTensor::kFloat32, 4096, 9},
        {mdcp::WeightTensor::kFloat16, 64, 576}, {mdcp::WeightTensor::kBFloat16, 64, 576}};
    std::vector<std::vector<uint32_t>> memory;
    std::vector<mdcp::WeightTensor> tensors;
    int64_t rows = 0;
    for (const Shape& shape : shapes) {
        // Of two halves, 0x3c00 to 0x3fff each, every type reads numbers near 1.
        memory.push_back(filled<uint32_t>(shape.rows * shape.row_length, [&] {
            return (0x3c003c00u | (numbers.next() & 0x03ff03ffu));
        }));
        tensors.push_back({reinterpret_cast<int64_t>(memory.back().data()), shape.type, shape.rows,
                           shape.row_length});
        rows += shape.rows;
    }
    std::vector<float> out(3 * rows);
    measured([&] {
        mdcp::channel_statistics(tensors.data(), static_cast<int64_t>(tensors.size()), out.data(),
                                 kHow);
    });
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
    measured([&] {
        mdcp::ward(of.points.data(), of.offsets.data(), of.count(), of.dimensions, linkage.data(),
                   kHow);
    });
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
    measured([&] { mdcp::kmeans(in, out, kHow); });
}

void crowding() {
    Numbers numbers;
    std::vector<int64_t> sizes = filled<int64_t>(100, [&] { return numbers.below(40); });
    sizes.push_back(2000);
    const std::vector<int64_t> offsets = bounds(sizes);
    const auto points = filled<float>(3 * offsets.back(), [&] { return numbers.normal(); });
    std::vector<float> out(offsets.back());
    measured([&] {
        mdcp::crowding_distance(points.data(), offsets.data(), static_cast<int64_t>(sizes.size()),
                                3, out.data(), kHow);
    });
}

// 53 axes of 17 widths; each layer's cost is the product of two neighbours' widths.
void population() {
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
    const mdcp::Cost cost{constant.data(), offsets.data(), axis.data(),
                          factor.data(),   terms.data(),   coefficients.data(),
                          kAxes + 1,       kAxes,          1};
    std::vector<double> fitness(kRuns * kCandidates);
    measured([&] {
        mdcp::evaluate_population(widths.data(), kRuns, kCandidates, kAxes, loss.data(),
                                  loss_offsets.data(), cost, limits.data(), fitness.data(), kHow);
    });
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
    const mdcp::EvolutionState state{low.data(),
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
    std::vector<uint32_t> generators(kRuns * mdcp::kGeneratorWords);
    mdcp::random_seed(seeds.data(), kRuns, generators.data());
    int64_t n = kPopulation, capacity = kArchive;
    for (int64_t generation = 0; generation < 20; ++generation) {
        std::vector<double> chance(kRuns * n * (mdcp::kMutationChances + kWidth));
        const auto normal = filled<double>(kRuns * n, [&] { return numbers.normal(); });
        const auto keys = filled<double>(kRuns * (capacity + n), uniform);
        std::vector<int64_t> candidates(kRuns * n * kWidth);
        measured([&] {
            mdcp::random_uniform(generators.data(), kRuns,
                                 static_cast<int64_t>(chance.size()) / kRuns, chance.data());
            if (generation) mdcp::evolution_mutate(state, n, 7, chance.data(), normal.data());
            mdcp::evolution_round(state, n, candidates.data());
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
                mdcp::evolution_remember(state, n, capacity, fitness.data(), keys.data());
            }
            mdcp::evolution_take(state, n, fitness.data(), best.data(), best_fitness.data());
            mdcp::evolution_shrink(state, n, left, rows);
        });
        n = left;
        capacity = rows;
    }
    constexpr int64_t kMoves = 512;
    const auto chance = filled<double>(kRuns * kMoves * 5, uniform);
    std::vector<int64_t> candidates(kRuns * kMoves * kWidth);
    measured([&] {
        mdcp::descent_moves(best.data(), kRuns, kMoves, kWidth, low.data(), high.data(), 5,
                            chance.data(), candidates.data());
    });
}

struct Op {
    const char* name;
    void (*run)();
};

const Op kOps[] = {
    {"channel_statistics", statistics},
    {"ward", ward},
    {"kmeans, ward", [] { kmeans(mdcp::KMeansProblem::kWard, 3); }},
    {"kmeans, k-means++", [] { kmeans(mdcp::KMeansProblem::kPlusPlus, 3); }},
    {"kmeans, 16 dimensions", [] { kmeans(mdcp::KMeansProblem::kPlusPlus, 16); }},
    {"crowding_distance", crowding},
    {"evaluate_population", population},
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
