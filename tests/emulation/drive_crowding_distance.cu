// Runs cuda::crowding_distance on a few segments and compares it with the CPU's op bit for bit.
#include <cstdint>
#include <vector>

#include "driver.h"
#include "ops/crowding_distance.h"

using driver::Buffer;

namespace {

void compare(const std::vector<int64_t>& sizes, int32_t dimensions, driver::Numbers numbers) {
    std::vector<int64_t> bounds{0};
    for (const int64_t size : sizes) bounds.push_back(bounds.back() + size);
    const auto segments = static_cast<int64_t>(sizes.size());
    const auto count = static_cast<size_t>(bounds.back());
    std::vector<float> coordinates(count * static_cast<size_t>(dimensions));
    for (float& coordinate : coordinates) coordinate = numbers.coordinate();
    Buffer<float> points(coordinates);

    const mdcp::CrowdingDistanceProblem in{points.data(), bounds.data(), segments, dimensions};
    Buffer<float> expected(count), out(count);
    mdcp::cpu::crowding_distance(in, {expected.data()}, {1, 0});

    Buffer<int64_t> tables(static_cast<size_t>(mdcp::cuda::crowding_distance_tables(in, nullptr)));
    mdcp::cuda::crowding_distance_tables(in, tables.data());
    Buffer<unsigned char> workspace(
        static_cast<size_t>(mdcp::cuda::crowding_distance_workspace(in)));
    mdcp::cuda::crowding_distance(in, {out.data()}, {tables.data(), workspace.data(), 0, nullptr});
    driver::expect(out == expected, "distances in " + std::to_string(dimensions) + " dimensions");
}

}  // namespace

int main(int count, char** arguments) {
    return driver::run(count, arguments, [] {
        driver::Numbers numbers(1);
        compare({0, 1, 2, 3, 40, 0, 5}, 1, numbers);  // several segments a block
        compare({60, 300, 2, 1000}, 3, numbers);      // a block a segment
        compare({17, 4500}, 2, numbers);              // several blocks a segment
        compare({9, 270}, 16, numbers);
    });
}
