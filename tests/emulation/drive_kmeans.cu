// Runs cuda::kmeans on a few ragged problems and compares it with the CPU's op bit for bit.
#include <cstdint>
#include <vector>

#include "driver.h"
#include "ops/kmeans.h"

using driver::Buffer;
using mdcp::KMeansProblem;

namespace {

struct Case {
    std::vector<int64_t> sizes, problem, k;
    int32_t dimensions;
    KMeansProblem::Init init;
    int64_t max_iter;
};

struct Answer {
    Buffer<int64_t> labels, iterations;
    Buffer<float> centers;
    Buffer<double> inertia;

    Answer(size_t labels, size_t centers, size_t jobs)
        : labels(labels), iterations(jobs), centers(centers), inertia(jobs) {}
    mdcp::KMeansResult result(const int64_t* offsets) {
        return {offsets, labels.data(), centers.data(), inertia.data(), iterations.data()};
    }
    bool operator==(const Answer& other) const {
        return labels == other.labels && iterations == other.iterations &&
               centers == other.centers && inertia == other.inertia;
    }
};

void compare(const Case& one, driver::Numbers numbers) {
    std::vector<int64_t> offsets{0}, label_offsets{0};
    for (const int64_t size : one.sizes) offsets.push_back(offsets.back() + size);
    size_t clusters = 0;
    for (size_t job = 0; job < one.k.size(); ++job) {
        label_offsets.push_back(label_offsets.back() +
                                one.sizes[static_cast<size_t>(one.problem[job])]);
        clusters += static_cast<size_t>(one.k[job]);
    }
    const auto coordinates = [&](size_t count) {
        std::vector<float> values(count * static_cast<size_t>(one.dimensions));
        for (float& value : values) value = numbers.coordinate();
        return values;
    };
    Buffer<float> points(coordinates(static_cast<size_t>(offsets.back())));
    Buffer<float> centers(coordinates(clusters));
    const KMeansProblem in{points.data(),
                           offsets.data(),
                           static_cast<int64_t>(one.sizes.size()),
                           one.dimensions,
                           one.k.data(),
                           one.problem.data(),
                           static_cast<int64_t>(one.k.size()),
                           one.init,
                           centers.data(),
                           one.max_iter,
                           7};

    const auto labels = static_cast<size_t>(label_offsets.back());
    Answer expected(labels, centers.size(), one.k.size());
    Answer found(labels, centers.size(), one.k.size());
    mdcp::cpu::kmeans(in, expected.result(label_offsets.data()), {1, 0});
    Buffer<int64_t> tables(static_cast<size_t>(mdcp::cuda::kmeans_tables(in, nullptr)));
    mdcp::cuda::kmeans_tables(in, tables.data());
    Buffer<unsigned char> workspace(static_cast<size_t>(mdcp::cuda::kmeans_workspace(in)));
    mdcp::cuda::kmeans(in, found.result(nullptr), {tables.data(), workspace.data(), 0, nullptr});
    driver::expect(found == expected, "clusters of " + std::to_string(one.dimensions) +
                                          " dimensions from seeds " + std::to_string(one.init));
}

}  // namespace

int main(int count, char** arguments) {
    return driver::run(count, arguments, [] {
        driver::Numbers numbers(1);
        for (const auto init :
             {KMeansProblem::kWard, KMeansProblem::kPlusPlus, KMeansProblem::kGiven}) {
            compare({{5, 0, 1, 40}, {3, 0, 3, 2}, {7, 2, 39, 1}, 1, init, 100}, numbers);
            compare({{290, 33}, {0, 1, 0}, {20, 33, 150}, 3, init, 100}, numbers);
            compare({{70}, {0}, {9}, 5, init, 100}, numbers);
            compare({{60}, {0}, {25}, 16, init, 3}, numbers);
            compare({{60}, {0}, {60}, 2, init, 0}, numbers);
            compare({{200}, {0}, {11}, 8, init, 5}, numbers);  // two points to a thread
            compare({{300}, {0}, {5}, 16, init, 2}, numbers);  // points in several rounds
        }
    });
}
