#include <algorithm>
#include <numeric>

#include "cuda/ward_plan.cuh"

namespace mdcp::cuda {

WardPlan::WardPlan(const int64_t* offsets, int64_t problem_count)
    : points(offsets[problem_count]), problems(problem_count), tiles(0) {
    const auto size = [&](int64_t problem) { return offsets[problem + 1] - offsets[problem]; };
    std::vector<int64_t> order(problems);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return size(a) > size(b); });
    const auto larger_than = [&](int64_t limit) {
        return std::partition_point(order.begin(), order.end(),
                                    [&](int64_t problem) { return size(problem) > limit; }) -
               order.begin();
    };
    wide = larger_than(kWardWidePoints);
    large = larger_than(kWardFewPoints);

    std::vector<int64_t> tile_problem, tile_begin;
    for (int64_t i = 0; i < problems; ++i) {
        if (i == wide) wide_tiles = static_cast<int64_t>(tile_begin.size());
        for (int64_t begin = 0; begin < size(order[i]); begin += kWardTile) {
            tile_problem.push_back(order[i]);
            tile_begin.push_back(begin);
        }
    }
    tiles = static_cast<int64_t>(tile_begin.size());
    if (wide == problems) wide_tiles = tiles;

    tables.assign(offsets, offsets + problems + 1);
    tables.push_back(0);
    for (int64_t p = 0; p < problems; ++p) {
        tables.push_back(tables.back() + std::max<int64_t>(size(p) - 1, 0));
    }
    tables.insert(tables.end(), order.begin(), order.end());
    tables.insert(tables.end(), tile_problem.begin(), tile_problem.end());
    tables.insert(tables.end(), tile_begin.begin(), tile_begin.end());
}

WardProblems WardPlan::on_device(const float* points, int32_t dimensions,
                                 const int64_t* tables) const {
    const int64_t* const rows = tables + problems + 1;
    const int64_t* const order = rows + problems + 1;
    return {points, dimensions, tables, rows, order, order + problems, order + problems + tiles};
}

}  // namespace mdcp::cuda
