// Runs cuda::ward on a few ragged problems and compares it with the CPU's op bit for bit.
#include <cstdint>
#include <vector>

#include "driver.h"
#include "ops/ward.h"

using driver::Buffer;

namespace {

void compare(const std::vector<int64_t>& sizes, int32_t dimensions, driver::Numbers numbers) {
    std::vector<int64_t> offsets{0};
    size_t rows = 0;
    for (const int64_t size : sizes) {
        offsets.push_back(offsets.back() + size);
        if (size > 1) rows += static_cast<size_t>(size - 1);
    }
    const auto problems = static_cast<int64_t>(sizes.size());
    std::vector<float> coordinates(static_cast<size_t>(offsets.back() * dimensions));
    for (float& coordinate : coordinates) coordinate = numbers.coordinate();
    Buffer<float> points(coordinates);

    const mdcp::WardProblem in{points.data(), offsets.data(), problems, dimensions};
    Buffer<double> expected(4 * rows), linkage(4 * rows);
    mdcp::cpu::ward(in, {expected.data()}, {1, 0});

    Buffer<int64_t> tables(static_cast<size_t>(mdcp::cuda::ward_tables(in, nullptr)));
    mdcp::cuda::ward_tables(in, tables.data());
    Buffer<unsigned char> workspace(static_cast<size_t>(mdcp::cuda::ward_workspace(in)));
    mdcp::cuda::ward(in, {linkage.data()}, {tables.data(), workspace.data(), 0, nullptr});
    driver::expect(linkage == expected, "linkage of " + std::to_string(dimensions) + " dimensions");
}

}  // namespace

int main(int count, char** arguments) {
    return driver::run(count, arguments, [] {
        driver::Numbers numbers(1);
        compare({0, 1, 2, 5, 70, 3}, 1, numbers);  // points that are equal
        compare({33, 150, 0, 64}, 3, numbers);     // a block of each size
        compare({40}, 5, numbers);
        compare({1030, 4}, 2, numbers);  // rounds spread over several blocks
        compare({9, 17}, 16, numbers);
    });
}
