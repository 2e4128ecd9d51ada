#include "numerics/crowding.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "native.h"

namespace mdcp {
namespace {

constexpr int kBlock = 16;                // points whose ranks are counted side by side
constexpr int kMostCounted = 128;         // larger segments are sorted: counting is quadratic
constexpr int64_t kPointsPerItem = 2048;  // enough work to be worth a turn of a thread
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;

// What one worker needs for a segment of up to `size` points, reused from segment to segment.
struct Scratch {
    std::vector<int32_t> keys, sorted_keys, rank, order, other_order;
    std::vector<float> values;
    std::vector<double> gaps, total;

    void reserve(int64_t size) {
        const size_t padded = static_cast<size_t>((size + kBlock - 1) / kBlock * kBlock);
        if (keys.size() >= padded) return;
        for (auto* numbers : {&keys, &sorted_keys, &rank, &order, &other_order}) {
            numbers->resize(padded);
        }
        values.resize(padded);
        gaps.resize(padded);
        total.resize(padded);
    }
};

MDCP_INLINE int32_t bits_of(float value) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The place of every point in the order (key, index): how many come before it.
// keys: [n, rounded up to blocks; what is beyond n is of no account]; rank: likewise.
struct CountRanks {
    MDCP_INLINE static void run(const int32_t* keys, int32_t n, int32_t* rank) {
        for (int32_t begin = 0; begin < n; begin += kBlock) {
            int32_t before[kBlock] = {};
            for (int32_t other = 0; other < n; ++other) {
                const int32_t key = keys[other];
                // key + 1 turns "less" into "less or equal": of two alike the earlier comes first.
                for (int lane = 0; lane < kBlock; ++lane) {
                    const int32_t bound = keys[begin + lane] + (other < begin + lane ? 1 : 0);
                    before[lane] += key < bound ? 1 : 0;
                }
            }
            for (int lane = 0; lane < kBlock; ++lane) rank[begin + lane] = before[lane];
        }
    }
};

// gaps[place], 1 <= place < n - 1: what the point there gets, of the values in sorted order.
struct Gaps {
    MDCP_INLINE static void run(const float* values, int32_t n, double* gaps) {
        for (int32_t place = 1; place < n - 1; ++place) {
            gaps[place] =
                crowding_gap(values[place - 1], values[place + 1], values[0], values[n - 1]);
        }
    }
};

// order[r]: the point at place r of the order (key, index). A radix sort, which keeps the order of
// equal digits, from the lowest digit up.
void sort_order(int32_t n, Scratch& scratch) {
    for (int32_t i = 0; i < n; ++i) scratch.order[i] = i;
    for (int shift = 0; shift < 32; shift += kDigitBits) {
        int32_t starts[kDigits + 1] = {};
        const uint32_t flip = 0x80000000u;  // signed order as unsigned
        for (int32_t i = 0; i < n; ++i) {
            const uint32_t key = static_cast<uint32_t>(scratch.keys[i]) ^ flip;
            ++starts[((key >> shift) & (kDigits - 1)) + 1];
        }
        if (std::find(starts, starts + kDigits + 1, n) != starts + kDigits + 1) continue;
        for (int digit = 0; digit < kDigits; ++digit) starts[digit + 1] += starts[digit];
        for (int32_t place = 0; place < n; ++place) {
            const int32_t point = scratch.order[place];
            const uint32_t key = static_cast<uint32_t>(scratch.keys[point]) ^ flip;
            scratch.other_order[starts[(key >> shift) & (kDigits - 1)]++] = point;
        }
        std::swap(scratch.order, scratch.other_order);
    }
}

// points: [n, dimensions]; out: [n].
void crowd_segment(const float* points, int32_t n, int32_t dimensions, float* out, int simd,
                   Scratch& scratch) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (n <= 2) {
        std::fill(out, out + n, std::numeric_limits<float>::infinity());
        return;
    }
    scratch.reserve(n);
    std::fill(scratch.total.begin(), scratch.total.begin() + n, 0.0);
    for (int32_t dimension = 0; dimension < dimensions; ++dimension) {
        for (int32_t i = 0; i < n; ++i) {
            scratch.keys[i] =
                order_key(bits_of(points[static_cast<int64_t>(i) * dimensions + dimension]));
        }
        if (n <= kMostCounted) {
            dispatch<CountRanks>(simd, scratch.keys.data(), n, scratch.rank.data());
            for (int32_t i = 0; i < n; ++i) scratch.order[scratch.rank[i]] = i;
        } else {
            sort_order(n, scratch);
        }
        for (int32_t place = 0; place < n; ++place) {
            scratch.values[place] =
                points[static_cast<int64_t>(scratch.order[place]) * dimensions + dimension];
        }
        if (scratch.values[0] == scratch.values[n - 1]) continue;
        dispatch<Gaps>(simd, static_cast<const float*>(scratch.values.data()), n,
                       scratch.gaps.data());
        scratch.gaps[0] = scratch.gaps[n - 1] = kInfinity;
        for (int32_t place = 0; place < n; ++place) {
            scratch.total[scratch.order[place]] += scratch.gaps[place];
        }
    }
    for (int32_t i = 0; i < n; ++i) out[i] = static_cast<float>(scratch.total[i]);
}

}  // namespace

void crowding_distance(const float* points, const int64_t* offsets, int64_t segments,
                       int32_t dimensions, float* out, Execution how) {
    // Neighbouring segments are taken together until they are worth a turn of a thread.
    std::vector<int64_t> bounds{0};
    for (int64_t segment = 1; segment <= segments; ++segment) {
        if (segment == segments || offsets[segment] - offsets[bounds.back()] >= kPointsPerItem) {
            bounds.push_back(segment);
        }
    }
    std::vector<Scratch> scratch(std::max(how.threads, 1));
    parallel_for(static_cast<int64_t>(bounds.size()) - 1, how.threads,
                 [&](int worker, int64_t item) {
                     for (int64_t segment = bounds[item]; segment < bounds[item + 1]; ++segment) {
                         const int64_t begin = offsets[segment];
                         crowd_segment(points + begin * dimensions,
                                       static_cast<int32_t>(offsets[segment + 1] - begin),
                                       dimensions, out + begin, how.simd, scratch[worker]);
                     }
                 });
}

}  // namespace mdcp
