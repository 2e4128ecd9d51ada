#include "ops/channel_statistics.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "numerics/channel_statistics.h"

namespace mdcp::cpu {
namespace {

constexpr int kTile = 32;                     // rows whose sums wait for the closing formula
constexpr int64_t kWeightsPerItem = 1 << 16;  // enough work to be worth a turn of a thread
constexpr int kAhead = 3072;                  // bytes between what is fetched and what is read
constexpr int kCacheLine = 64;

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

// Fetches what a later step reads, be it of the next row: the processor's own prefetching stops at
// the end of a page. Past the last weight it fetches nothing, or what nobody reads.
template <class Weight>
MDCP_INLINE void fetch_ahead(const Weight* weights) {
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(weights) + kAhead;
    for (size_t byte = 0; byte < kLanes * sizeof(Weight); byte += kCacheLine) {
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + byte));
    }
}

// Adds the next kLanes weights to the lanes.
template <class Weight>
MDCP_INLINE void add_step(const Weight* weights, double first, double* sum, double* squares) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const double d = widen(weights[lane]) - first;
        sum[lane] += d;
        squares[lane] += d * d;
    }
}

// Adds the upper half of 2 * half lanes to the lower, down to lane 0. A template, because the
// compiler unrolls what it knows the length of.
template <int half>
MDCP_INLINE void add_halves(double* lanes) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    if constexpr (half > 1) add_halves<half / 2>(lanes);
}

// What is kept of up to kTile rows until the closing formula.
struct Tile {
    double first[kTile], sum[kTile], squares[kTile];
};

// Row `index` of a tile, n > kLanes, the lanes along it. A function of its own for every row:
// in a larger one the compiler does not keep the lanes in registers.
template <class Weight>
struct SumLongRow {
    MDCP_INLINE static void run(const Weight* row, int64_t n, Tile* tile, int index) {
        const double first = widen(row[0]);
        // Begun by the first step: to clear so much memory takes as long as several steps.
        double sums[kLanes], square_sums[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
            const double d = widen(row[lane]) - first;
            sums[lane] = 0.0 + d;  // lanes add up from 0, never to -0
            square_sums[lane] = d * d;
        }
        fetch_ahead(row);
        int64_t at = kLanes;
        for (; at + kLanes <= n; at += kLanes) {
            fetch_ahead(row + at);
            add_step(row + at, first, sums, square_sums);
        }
        if (at < n) {
            Weight tail[kLanes];  // filled up with the first weight, which adds zeros
            for (int i = 0; i < kLanes; ++i) tail[i] = row[at + i < n ? at + i : 0];
            add_step(tail, first, sums, square_sums);
        }
        add_halves<kLanes / 2>(sums);
        add_halves<kLanes / 2>(square_sums);
        tile->first[index] = first;
        tile->sum[index] = sums[0];
        tile->squares[index] = square_sums[0];
    }
};

// `rows` rows of n <= kLanes weights, side by side: one weight in a lane, the vectors along rows.
template <class Weight>
struct SumShortRows {
    MDCP_INLINE static void run(const Weight* weights, int rows, int n, Tile* tile) {
        double sums[kLanes][kTile];
        double square_sums[kLanes][kTile];
        for (int row = 0; row < rows; ++row) tile->first[row] = widen(weights[row * n]);
        for (int lane = 0; lane < n; ++lane) {
            for (int row = 0; row < rows; ++row) {
                const double d = widen(weights[row * n + lane]) - tile->first[row];
                sums[lane][row] = 0.0 + d;
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
            tile->sum[row] = sums[0][row];
            tile->squares[row] = square_sums[0][row];
        }
    }
};

// out: [rows, 3]; *finite becomes false if a result does not fit a float.
struct CloseTile {
    MDCP_INLINE static void run(const Tile* tile, int rows, double n, float* out, bool* finite) {
        float mean[kTile], variance[kTile], distance[kTile];
        for (int row = 0; row < rows; ++row) {
            const RowStatistics of =
                row_statistics(tile->first[row], tile->sum[row], tile->squares[row], n);
            mean[row] = static_cast<float>(of.mean);
            variance[row] = static_cast<float>(of.variance);
            distance[row] = static_cast<float>(of.cosine_distance);
        }
        int strange = 0;
        for (int row = 0; row < rows; ++row) {
            // A number less itself is 0, an infinity or NaN less itself is NaN.
            strange |= (mean[row] - mean[row]) + (variance[row] - variance[row]) != 0.0f ? 1 : 0;
            out[3 * row + 0] = mean[row];
            out[3 * row + 1] = variance[row];
            out[3 * row + 2] = distance[row];
        }
        if (strange) *finite = false;
    }
};

// weights: [rows, n]; out: [rows, 3]; false if a result does not fit a float.
template <class Weight>
bool describe_rows(const Weight* weights, int64_t rows, int64_t n, float* out, int simd) {
    bool finite = true;
    Tile tile;
    for (int64_t begin = 0; begin < rows; begin += kTile) {
        const int count = static_cast<int>(std::min<int64_t>(kTile, rows - begin));
        const Weight* first = weights + begin * n;
        if (n <= kLanes) {
            dispatch<SumShortRows<Weight>>(simd, first, count, static_cast<int>(n), &tile);
        } else {
            for (int row = 0; row < count; ++row) {
                dispatch<SumLongRow<Weight>>(simd, first + row * n, n, &tile, row);
            }
        }
        dispatch<CloseTile>(simd, static_cast<const Tile*>(&tile), count, static_cast<double>(n),
                            out + 3 * begin, &finite);
    }
    return finite;
}

struct Item {
    int64_t tensor;
    int64_t begin;  // first row, within the tensor
    int64_t rows;
    int64_t out;  // first row, within the output
};

template <class Weight>
bool run_item(const ChannelStatisticsProblem& in, const Item& item, float* out, int simd) {
    const int64_t row_length = in.row_lengths[item.tensor];
    const Weight* weights =
        reinterpret_cast<const Weight*>(in.addresses[item.tensor]) + item.begin * row_length;
    return describe_rows(weights, item.rows, row_length, out + 3 * item.out, simd);
}

}  // namespace

int64_t channel_statistics(const ChannelStatisticsProblem& in, const ChannelStatisticsResult& out,
                           Execution execution) {
    using Problem = ChannelStatisticsProblem;
    std::vector<Item> items;
    int64_t total = 0;
    for (int64_t tensor = 0; tensor < in.tensors; ++tensor) {
        const int64_t rows = in.rows[tensor];
        const int64_t step =
            std::max<int64_t>(1, kWeightsPerItem / std::max<int64_t>(1, in.row_lengths[tensor]));
        for (int64_t begin = 0; begin < rows; begin += step) {
            items.push_back({tensor, begin, std::min(step, rows - begin), total + begin});
        }
        total += rows;
    }
    std::atomic<int64_t> first_strange{std::numeric_limits<int64_t>::max()};
    parallel_for(static_cast<int64_t>(items.size()), execution.threads, [&](int, int64_t index) {
        const Item& item = items[index];
        bool finite = true;
        switch (in.types[item.tensor]) {
            case Problem::kFloat32:
                finite = run_item<float>(in, item, out.statistics, execution.simd);
                break;
            case Problem::kFloat16:
                finite = run_item<Half>(in, item, out.statistics, execution.simd);
                break;
            case Problem::kBFloat16:
                finite = run_item<BFloat16>(in, item, out.statistics, execution.simd);
                break;
        }
        if (finite) return;
        int64_t known = first_strange;
        while (item.tensor < known && !first_strange.compare_exchange_weak(known, item.tensor)) {
        }
    });
    const int64_t strange = first_strange;
    return strange < in.tensors ? strange : -1;
}

}  // namespace mdcp::cpu
