#include "cpu/spatial.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "numerics/distance.h"

namespace mdcp::cpu {
namespace {

// Unsigned integers that order as the floats do.
uint32_t sortable(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace

std::vector<int32_t> spatial_order(const float* points, int64_t count, int32_t dimensions) {
    std::vector<int32_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::vector<uint64_t> keys(count);  // a coordinate above, the point's index below
    std::vector<std::pair<int64_t, int64_t>> ranges{{0, count}};
    while (!ranges.empty()) {
        const auto [begin, end] = ranges.back();
        ranges.pop_back();
        const int64_t size = end - begin;
        if (size <= 8) continue;

        float low[kMaxDimensions], high[kMaxDimensions];
        for (int d = 0; d < dimensions; ++d) {
            low[d] = high[d] = points[order[begin] * int64_t{dimensions} + d];
        }
        for (int64_t i = begin + 1; i < end; ++i) {
            const float* point = points + order[i] * int64_t{dimensions};
            for (int d = 0; d < dimensions; ++d) {
                low[d] = std::min(low[d], point[d]);
                high[d] = std::max(high[d], point[d]);
            }
        }
        int widest = 0;
        for (int d = 1; d < dimensions; ++d) {
            // Halved, for the difference of two floats may overflow.
            if (high[d] / 2 - low[d] / 2 > high[widest] / 2 - low[widest] / 2) widest = d;
        }

        for (int64_t i = begin; i < end; ++i) {
            const float value = points[order[i] * int64_t{dimensions} + widest];
            keys[i] = uint64_t{sortable(value)} << 32 | static_cast<uint32_t>(order[i]);
        }
        const int64_t left = size <= 16 ? 8 : (size / 2 + 15) / 16 * 16;
        std::nth_element(keys.begin() + begin, keys.begin() + begin + left, keys.begin() + end);
        for (int64_t i = begin; i < end; ++i) order[i] = static_cast<int32_t>(keys[i]);
        ranges.emplace_back(begin, begin + left);
        ranges.emplace_back(begin + left, end);
    }
    return order;
}

}  // namespace mdcp::cpu
