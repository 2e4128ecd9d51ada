// Points without the last coordinates if those are zero for all of them: they change no distance,
// and descriptors of different lengths share one array that way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace mdcp::cpu {

// One more than the last coordinate that is not +0 in every row; at least 1.
inline int32_t used_dimensions(const float* points,  // [count, dimensions]
                               int64_t count, int32_t dimensions) {
    int32_t used = 1;
    for (int64_t i = 0; i < count && used < dimensions; ++i) {
        const float* point = points + i * dimensions;
        for (int32_t d = dimensions - 1; d >= used; --d) {
            uint32_t bits;
            std::memcpy(&bits, point + d, sizeof bits);
            if (bits != 0) used = d + 1;
        }
    }
    return used;
}

struct Trimmed {
    Trimmed(const float* given,  // [count, dimensions]
            int64_t count, int32_t dimensions, int32_t used)
        : points(given), dimensions(used) {
        if (used == dimensions) return;
        copy_.resize(count * used);
        for (int64_t i = 0; i < count; ++i) {
            std::copy_n(given + i * dimensions, used, copy_.begin() + i * used);
        }
        points = copy_.data();
    }
    Trimmed(const Trimmed&) = delete;
    Trimmed& operator=(const Trimmed&) = delete;

    const float* points;  // [count, dimensions]
    int32_t dimensions;

  private:
    std::vector<float> copy_;
};

}  // namespace mdcp::cpu
