#include "numerics/statistics.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "native.h"

namespace mdcp {
namespace {

constexpr int kTile = 64;                     // rows whose sums wait for the closing formula
constexpr int64_t kWeightsPerItem = 1 << 16;  // enough work to be worth a turn of a thread

struct Half {
    uint16_t bits;
};
struct BFloat16 {
    uint16_t bits;
};

MDCP_INLINE float float_of(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

MDCP_INLINE float widen(float weight) {
    return weight;
}

MDCP_INLINE float widen(BFloat16 weight) {
    return float_of(static_cast<uint32_t>(weight.bits) << 16);
}

MDCP_INLINE float widen(Half weight) {
    const uint32_t sign = static_cast<uint32_t>(weight.bits & 0x8000) << 16;
    const uint32_t shifted = static_cast<uint32_t>(weight.bits & 0x7fff) << 13;
    const uint32_t exponent = shifted & (31u << 23);
    const uint32_t rebias = 112u << 23;  // between the exponents' biases of 15 and 127
    // A number too small for an exponent gets one, which a subtraction takes off again; infinities
    // and NaN move to the largest exponent.
    const float tiny = float_of(shifted + rebias + (1u << 23)) - float_of(113u << 23);
    const float other = float_of(shifted + rebias + (exponent == (31u << 23) ? rebias : 0u));
    const float magnitude = exponent == 0 ? tiny : other;
    uint32_t bits;
    __builtin_memcpy(&bits, &magnitude, sizeof bits);
    return float_of(bits | sign);
}

// Adds one step to the lanes.
template <class Weight>
MDCP_INLINE void add_step(const Weight* weights, double first, double* sum, double* squares) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const double a = widen(weights[lane]) - first;
        const double b = widen(weights[lane + kLanes]) - first;
        const double c = widen(weights[lane + 2 * kLanes]) - first;
        const double d = widen(weights[lane + 3 * kLanes]) - first;
        sum[lane] += (a + b) + (c + d);
        squares[lane] += (a * a + b * b) + (c * c + d * d);
    }
}

MDCP_INLINE double add_lanes(double* lanes) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
}

// One long row: the lanes run along it.
template <class Weight>
MDCP_INLINE void sum_long(const Weight* row, int64_t n, double first, double* sum,
                          double* squares) {
    double sums[kLanes] = {};
    double square_sums[kLanes] = {};
    int64_t at = 0;
    for (; at + kStep <= n; at += kStep) add_step(row + at, first, sums, square_sums);
    if (at < n) {
        Weight tail[kStep];
        for (int i = 0; i < kStep; ++i) tail[i] = row[at + i < n ? at + i : 0];
        add_step(tail, first, sums, square_sums);
    }
    *sum = add_lanes(sums);
    *squares = add_lanes(square_sums);
}

// `rows` rows of n <= kLanes weights, side by side: the instruction's lanes are rows.
template <class Weight>
MDCP_INLINE void sum_short(const Weight* weights, int rows, int n, const double* first, double* sum,
                           double* squares) {
    double sums[kLanes][kTile];
    double square_sums[kLanes][kTile];
    for (int lane = 0; lane < n; ++lane) {
        for (int row = 0; row < rows; ++row) {
            const double d = widen(weights[row * n + lane]) - first[row];
            sums[lane][row] = 0.0 + d;  // the steps add up from 0, which has no sign
            square_sums[lane][row] = d * d;
        }
    }
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane + half < n && lane < half; ++lane) {
            for (int row = 0; row < rows; ++row) {
                sums[lane][row] += sums[lane + half][row];
                square_sums[lane][row] += square_sums[lane + half][row];
            }
        }
    }
    for (int row = 0; row < rows; ++row) {
        sum[row] = sums[0][row];
        squares[row] = square_sums[0][row];
    }
}

template <class Weight>
struct Statistics {
    // weights: [rows, n]; out: [rows, 3]; *finite becomes false if a weight is not.
    MDCP_INLINE static void run(const Weight* weights, int64_t rows, int64_t n, float* out,
                                bool* finite) {
        double first[kTile], sum[kTile], squares[kTile];
        double mean[kTile], variance[kTile], distance[kTile];
        int strange = 0;
        for (int64_t start = 0; start < rows; start += kTile) {
            const int count = static_cast<int>(rows - start < kTile ? rows - start : kTile);
            const Weight* tile = weights + start * n;
            for (int row = 0; row < count; ++row) first[row] = widen(tile[row * n]);
            if (n <= kLanes) {
                sum_short(tile, count, static_cast<int>(n), first, sum, squares);
            } else {
                for (int row = 0; row < count; ++row) {
                    sum_long(tile + row * n, n, first[row], sum + row, squares + row);
                }
            }
            for (int row = 0; row < count; ++row) {
                const RowStatistics of =
                    row_statistics(first[row], sum[row], squares[row], static_cast<double>(n));
                mean[row] = of.mean;
                variance[row] = of.variance;
                distance[row] = of.cosine_distance;
            }
            for (int row = 0; row < count; ++row) {
                strange |= !(mean[row] - mean[row] == 0.0);
                float* to = out + 3 * (start + row);
                to[0] = static_cast<float>(mean[row]);
                to[1] = static_cast<float>(variance[row]);
                to[2] = static_cast<float>(distance[row]);
            }
        }
        if (strange) *finite = false;
    }
};

struct Item {
    int64_t tensor;
    int64_t begin;  // first row, within the tensor
    int64_t rows;
    int64_t out;  // first row, within the output
};

template <class Weight>
bool run_item(const Item& item, const WeightTensor& tensor, float* out, int simd) {
    bool finite = true;
    const Weight* weights =
        reinterpret_cast<const Weight*>(tensor.address) + item.begin * tensor.row_length;
    dispatch<Statistics<Weight>>(simd, weights, item.rows, tensor.row_length, out + 3 * item.out,
                                 &finite);
    return finite;
}

}  // namespace

int64_t channel_statistics(const WeightTensor* tensors, int64_t tensor_count, float* out,
                           Execution how) {
    std::vector<Item> items;
    int64_t total = 0;
    for (int64_t tensor = 0; tensor < tensor_count; ++tensor) {
        const auto [address, type, rows, row_length] = tensors[tensor];
        const int64_t step =
            std::max<int64_t>(1, kWeightsPerItem / std::max<int64_t>(1, row_length));
        for (int64_t begin = 0; begin < rows; begin += step) {
            items.push_back({tensor, begin, std::min(step, rows - begin), total + begin});
        }
        total += rows;
    }
    std::atomic<int64_t> first_strange{std::numeric_limits<int64_t>::max()};
    parallel_for(static_cast<int64_t>(items.size()), how.threads, [&](int, int64_t index) {
        const Item& item = items[index];
        const WeightTensor& tensor = tensors[item.tensor];
        bool finite = true;
        switch (tensor.type) {
            case WeightTensor::kFloat32:
                finite = run_item<float>(item, tensor, out, how.simd);
                break;
            case WeightTensor::kFloat16:
                finite = run_item<Half>(item, tensor, out, how.simd);
                break;
            case WeightTensor::kBFloat16:
                finite = run_item<BFloat16>(item, tensor, out, how.simd);
                break;
        }
        if (finite) return;
        int64_t known = first_strange;
        while (item.tensor < known && !first_strange.compare_exchange_weak(known, item.tensor)) {
        }
    });
    const int64_t strange = first_strange;
    return strange < tensor_count ? strange : -1;
}

}  // namespace mdcp
