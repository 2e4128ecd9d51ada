// Greedy k-means++, bit for bit that of cpu/seeding.cpp: a block a problem.
//
// The weights are whole numbers, so their sums are the same in any order. Every thread has a run of
// the points: a ticket is found by the thread that the sums of the runs lead to. Candidates are
// tried by a warp each.
#include <limits>

#include "cuda/dimensions.cuh"
#include "cuda/launch.cuh"
#include "cuda/seeding.cuh"
#include "numerics/distance.h"
#include "numerics/fixed.h"
#include "numerics/philox.h"

namespace mdcp::cuda {

constexpr int kPlusPlusThreads = 256;
constexpr int kPlusPlusWarps = kPlusPlusThreads / kWarp;
constexpr int kPlusPlusMostTrials = 32;  // 2 + ln(2^22) is 17
constexpr float kPlusPlusFar = std::numeric_limits<float>::max();
constexpr int32_t kPlusPlusNobody = std::numeric_limits<int32_t>::max();

__device__ __forceinline__ unsigned long long whole_weight(float distance, double scale) {
    return static_cast<unsigned long long>(fixed_weight(distance, scale));
}

// Of a problem's points.
struct PlusPlusField {
    const float* at;  // [padded dimensions] coordinates, `stride` apart
    int64_t stride;
    int32_t count;
    float* distance;  // [count] squared, to the nearest seed so far
    int32_t* taken;   // [count] whether it is a seed
};

// Takes a seed in, every thread for the points from begin to end. Returns the largest distance that
// is left among those.
template <int kDimensions>
__device__ __forceinline__ float plus_plus_take(const PlusPlusField& field, int32_t seed,
                                                int32_t begin, int32_t end) {
    float farthest = 0;
    for (int32_t point = begin; point < end; ++point) {
        const float own = squared_distance<kDimensions>(field.at + point, field.stride,
                                                        field.at + seed, field.stride);
        const float nearest = Min()(field.distance[point], own);
        field.distance[point] = nearest;
        farthest = Max()(farthest, nearest);
        if (point == seed) field.taken[point] = 1;
    }
    return farthest;
}

// How much weight a candidate would take away, by a warp; in all of its lanes.
template <int kDimensions>
__device__ __forceinline__ unsigned long long plus_plus_gain(const PlusPlusField& field,
                                                             int32_t candidate, double scale) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    unsigned long long gain = 0;
    for (int32_t point = lane; point < field.count; point += kWarp) {
        const float before = field.distance[point];
        const float own = squared_distance<kDimensions>(field.at + point, field.stride,
                                                        field.at + candidate, field.stride);
        if (own < before) gain += whole_weight(before, scale) - whole_weight(own, scale);
    }
    return warp_reduce(gain, Sum());
}

template <int kDimensions>
__global__ void __launch_bounds__(kPlusPlusThreads, 2)
    plus_plus(Lloyd data, const PlusPlusTask* tasks, uint64_t seed,
              float* distance,   // scratch [points]
              int32_t* taken,    // scratch [points]
              int32_t* seeds) {  // OUT [seeds of all tasks]
    __shared__ float float_scratch[kPlusPlusWarps];
    __shared__ int32_t scratch[kPlusPlusWarps];
    __shared__ unsigned long long warp_weight[kPlusPlusWarps];
    __shared__ unsigned long long ticket[kPlusPlusMostTrials];
    __shared__ int32_t candidate[kPlusPlusMostTrials];
    __shared__ unsigned long long gain[kPlusPlusMostTrials];

    const PlusPlusTask task = tasks[blockIdx.x];
    const PlusPlusField field{data.scaled + task.first, data.point_count,
                              static_cast<int32_t>(task.count), distance + task.first,
                              taken + task.first};
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % kWarp, warp = thread / kWarp;
    const int trials = static_cast<int>(task.trials);
    const int64_t run = ceil_div(task.count, kPlusPlusThreads);
    const int32_t begin = static_cast<int32_t>(Min()(thread * run, task.count));
    const int32_t end = static_cast<int32_t>(Min()(begin + run, task.count));
    for (int32_t point = begin; point < end; ++point) {
        field.distance[point] = kPlusPlusFar;
        field.taken[point] = 0;
    }

    int32_t next = static_cast<int32_t>(below(philox(0, 0, 0, 0, seed), task.count));
    for (int64_t chosen = 1;; ++chosen) {
        if (thread == 0) seeds[task.seed + chosen - 1] = next;
        if (chosen == task.seeds) return;
        const float farthest = block_reduce(plus_plus_take<kDimensions>(field, next, begin, end),
                                            Max(), float_scratch);
        if (farthest == 0) {
            // All points coincide with seeds: the smallest index that is none yet.
            int32_t free = begin;
            while (free < end && field.taken[free] != 0) ++free;
            next = block_reduce(free < end ? free : kPlusPlusNobody, Min(), scratch);
            continue;
        }

        const double scale = weight_scale(farthest, task.count);
        unsigned long long mine = 0;
        for (int32_t point = begin; point < end; ++point) {
            mine += whole_weight(field.distance[point], scale);
        }
        const unsigned long long up_to = warp_scan(mine, Sum());
        if (lane == kWarp - 1) warp_weight[warp] = up_to;
        __syncthreads();
        unsigned long long start = up_to - mine, total = 0;
        for (int other = 0; other < kPlusPlusWarps; ++other) {
            if (other < warp) start += warp_weight[other];
            total += warp_weight[other];
        }
        if (thread < trials) {
            const Philox random =
                philox(static_cast<uint32_t>(chosen), static_cast<uint32_t>(thread), 0, 0, seed);
            ticket[thread] = below(random, total);
        }
        __syncthreads();

        // The first point at which the sum of the weights from the start exceeds the ticket.
        for (int trial = 0; trial < trials; ++trial) {
            if (ticket[trial] < start || ticket[trial] - start >= mine) continue;
            unsigned long long left = ticket[trial] - start;
            int32_t point = begin;
            for (;; ++point) {
                const unsigned long long weight = whole_weight(field.distance[point], scale);
                if (left < weight) break;
                left -= weight;
            }
            candidate[trial] = point;
        }
        __syncthreads();
        for (int trial = warp; trial < trials; trial += kPlusPlusWarps) {
            const unsigned long long found =
                plus_plus_gain<kDimensions>(field, candidate[trial], scale);
            if (lane == 0) gain[trial] = found;
        }
        __syncthreads();
        int best = 0;
        for (int trial = 1; trial < trials; ++trial) {
            if (gain[trial] > gain[best]) best = trial;
        }
        next = candidate[best];
    }
}

void launch_plus_plus(const Lloyd& data, const PlusPlusTask* tasks, int64_t task_count,
                      uint64_t seed, float* distance, int32_t* taken, int32_t* seeds,
                      cudaStream_t stream) {
    with_dimensions(data.dimensions, [&](auto n) {
        MDCP_LAUNCH((plus_plus<decltype(n)::value>), dim3(static_cast<unsigned>(task_count)),
                    kPlusPlusThreads, 0, stream, data, tasks, seed, distance, taken, seeds);
    });
}

}  // namespace mdcp::cuda
