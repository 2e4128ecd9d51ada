#include "ops/crowding_distance.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "numerics/crowding_distance.h"

namespace mdcp::cpu {
namespace {

constexpr int kBlock = 16;                // what numbers of points are rounded up to: a register
constexpr int kMostCounted = 128;         // larger segments are sorted: counting is quadratic
constexpr int64_t kPointsPerItem = 2048;  // enough work to be worth a turn of a thread
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

// What one worker needs for a segment, reused from segment to segment. Each vector holds a number
// for every point, rounded up to blocks.
struct Scratch {
    std::vector<int32_t> keys;          // of the points, along one dimension
    std::vector<int32_t> rank;          // of the points: their places in the order (key, index)
    std::vector<int32_t> order, other;  // of the places: the points there
    std::vector<float> column;          // of the points: their coordinates along one dimension
    std::vector<float> sorted;          // of the places
    std::vector<double> gaps;           // of the places
    std::vector<double> total;          // of the points

    void reserve(int64_t size) {
        const size_t padded = static_cast<size_t>((size + kBlock - 1) / kBlock * kBlock);
        if (keys.size() >= padded) return;
        for (auto* numbers : {&keys, &rank, &order, &other}) numbers->resize(padded);
        for (auto* numbers : {&column, &sorted}) numbers->resize(padded);
        for (auto* numbers : {&gaps, &total}) numbers->resize(padded);
    }
};

MDCP_INLINE int32_t bits_of(float value) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

// column[i], keys[i] of the n points, whose coordinates lie `stride` apart.
struct ReadColumn {
    MDCP_INLINE static void run(const float* points, int64_t stride, int32_t n, float* column,
                                int32_t* keys) {
        for (int32_t i = 0; i < n; ++i) column[i] = points[i * stride];
        for (int32_t i = 0; i < n; ++i) keys[i] = order_key(bits_of(column[i]));
    }
};

typedef int32_t Int32x4 __attribute__((vector_size(16)));
typedef int32_t Int32x8 __attribute__((vector_size(32)));
typedef int32_t Int32x16 __attribute__((vector_size(64)));

// rank[i]: how many points come before point i. keys, rank: [n, rounded up to blocks].
// Vector is as wide as the level's registers: GCC splits a wider one into single numbers.
template <class Vector>
struct CountRanks {
    static constexpr int kCount = sizeof(Vector) / sizeof(int32_t);

    MDCP_INLINE static void run(const int32_t* keys, int32_t n, int32_t* rank) {
        Vector index;
        for (int i = 0; i < kCount; ++i) index[i] = i;
        for (int32_t begin = 0; begin < n; begin += kCount) {
            Vector mine;
            __builtin_memcpy(&mine, keys + begin, sizeof mine);
            Vector before = {};
            for (int32_t other = 0; other < n; ++other) {
                // True is -1. A bound one higher turns "less" into "less or equal": of two alike
                // the one of the smaller index comes first.
                const Vector bound = mine - (other < index);
                before -= keys[other] < bound;
            }
            __builtin_memcpy(rank + begin, &before, sizeof before);
            index += kCount;
        }
    }
};

void count_ranks(const int32_t* keys, int32_t n, int32_t* rank, int simd) {
    switch (simd) {
        case kAvx512:
            return dispatch<CountRanks<Int32x16>>(simd, keys, n, rank);
        case kAvx2:
            return dispatch<CountRanks<Int32x8>>(simd, keys, n, rank);
        default:
            return dispatch<CountRanks<Int32x4>>(simd, keys, n, rank);
    }
}

// Adds to total[i] what point i gets along a dimension; sorted, gaps: scratch.
struct AddGaps {
    MDCP_INLINE static void run(const float* column, const int32_t* rank, int32_t n, float* sorted,
                                double* gaps, double* total) {
        for (int32_t i = 0; i < n; ++i) sorted[rank[i]] = column[i];
        const float lowest = sorted[0];
        const float highest = sorted[n - 1];
        if (lowest == highest) return;
        for (int32_t place = 1; place < n - 1; ++place) {
            gaps[place] = crowding_gap(sorted[place - 1], sorted[place + 1], lowest, highest);
        }
        gaps[0] = gaps[n - 1] = std::numeric_limits<double>::infinity();
        for (int32_t i = 0; i < n; ++i) total[i] += gaps[rank[i]];
    }
};

// rank[i] by a radix sort, which keeps the order of equal digits, from the lowest digit up.
void sort_ranks(int32_t n, Scratch& scratch) {
    for (int32_t i = 0; i < n; ++i) scratch.order[i] = i;
    const uint32_t flip = 0x80000000u;  // the order of signed numbers as that of unsigned ones
    for (int shift = 0; shift < 32; shift += kDigitBits) {
        int32_t starts[kDigits + 1] = {};
        for (int32_t i = 0; i < n; ++i) {
            const uint32_t key = static_cast<uint32_t>(scratch.keys[i]) ^ flip;
            ++starts[((key >> shift) & (kDigits - 1)) + 1];
        }
        for (int digit = 0; digit < kDigits; ++digit) starts[digit + 1] += starts[digit];
        for (int32_t place = 0; place < n; ++place) {
            const int32_t point = scratch.order[place];
            const uint32_t key = static_cast<uint32_t>(scratch.keys[point]) ^ flip;
            scratch.other[starts[(key >> shift) & (kDigits - 1)]++] = point;
        }
        std::swap(scratch.order, scratch.other);
    }
    for (int32_t place = 0; place < n; ++place) scratch.rank[scratch.order[place]] = place;
}

// points: [n, dimensions]; out: [n].
void crowd_segment(const float* points, int32_t n, int32_t dimensions, float* out, int simd,
                   Scratch& scratch) {
    if (n <= 2) {
        std::fill(out, out + n, std::numeric_limits<float>::infinity());
        return;
    }
    scratch.reserve(n);
    std::fill(scratch.total.begin(), scratch.total.begin() + n, 0.0);
    float* column = scratch.column.data();
    int32_t* keys = scratch.keys.data();
    int32_t* rank = scratch.rank.data();
    for (int32_t dimension = 0; dimension < dimensions; ++dimension) {
        dispatch<ReadColumn>(simd, points + dimension, static_cast<int64_t>(dimensions), n, column,
                             keys);
        if (n <= kMostCounted) {
            count_ranks(keys, n, rank, simd);
        } else {
            sort_ranks(n, scratch);
        }
        dispatch<AddGaps>(simd, static_cast<const float*>(column),
                          static_cast<const int32_t*>(rank), n, scratch.sorted.data(),
                          scratch.gaps.data(), scratch.total.data());
    }
    for (int32_t i = 0; i < n; ++i) out[i] = static_cast<float>(scratch.total[i]);
}

}  // namespace

void crowding_distance(const CrowdingDistanceProblem& in, const CrowdingDistanceResult& out,
                       Execution execution) {
    // Neighbouring segments are taken together until they are worth a turn of a thread.
    std::vector<int64_t> bounds{0};
    for (int64_t segment = 1; segment <= in.segments; ++segment) {
        const int64_t points = in.offsets[segment] - in.offsets[bounds.back()];
        if (segment == in.segments || points >= kPointsPerItem) bounds.push_back(segment);
    }
    std::vector<Scratch> scratch(std::max(execution.threads, 1));
    parallel_for(
        static_cast<int64_t>(bounds.size()) - 1, execution.threads, [&](int worker, int64_t item) {
            for (int64_t segment = bounds[item]; segment < bounds[item + 1]; ++segment) {
                const int64_t begin = in.offsets[segment];
                crowd_segment(in.points + begin * in.dimensions,
                              static_cast<int32_t>(in.offsets[segment + 1] - begin), in.dimensions,
                              out.distances + begin, execution.simd, scratch[worker]);
            }
        });
}

}  // namespace mdcp::cpu
