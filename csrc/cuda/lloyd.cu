// Lloyd's iteration for all jobs, bit for bit that of cpu/lloyd.cpp.
//
// The first assignment goes over all jobs at once, by tiles of points: it has most of the work.
// Then a block takes a job to its end. From good seeds few centres move, so it offers only those
// that moved to the points; a point whose own centre went away from it looks at all centres again,
// a warp a point. Whatever centres a point is spared, they could not have been its nearest.
#include <limits>

#include "cuda/dimensions.cuh"
#include "cuda/launch.cuh"
#include "cuda/lloyd.cuh"
#include "numerics/distance.h"
#include "numerics/fixed.h"

namespace mdcp::cuda {

constexpr int kLloydTileThreads = 128;
constexpr int kLloydThreads = 256;              // of a block that takes a job to its end
constexpr int kLloydSharedNumbers = 16384 / 4;  // of centres that a block shares at a time
constexpr int32_t kLloydNobody = std::numeric_limits<int32_t>::max();
constexpr float kLloydFar = std::numeric_limits<float>::infinity();
constexpr float kLloydUnknown = -1;  // the distance of a point that must look at all centres

// A centre in shared memory. Of three dimensions it is one 16-byte load.
template <int kDimensions>
struct alignas(kDimensions == 3 ? 16 : 4) LloydCenter {
    float at[kDimensions];
    int32_t index;
};

template <int kDimensions>
constexpr int kLloydShared = kLloydSharedNumbers / (kDimensions + 1);

// Points that a thread can hold in registers.
template <int kDimensions>
constexpr int kLloydMost = kDimensions <= 4   ? 4
                           : kDimensions == 8 ? 2
                                              : 1;

template <int kDimensions, int kPoints>
struct LloydHeld {
    float at[kPoints][kDimensions];
    float distance[kPoints];  // to the nearest centre so far
    int32_t label[kPoints];   // its index
};

template <int kDimensions>
__device__ __forceinline__ void lloyd_load_point(const Lloyd& data, const LloydJob& job,
                                                 int32_t point, float* at) {
    for (int d = 0; d < kDimensions; ++d) {
        at[d] = data.scaled[d * data.point_count + job.first + point];
    }
}

// Offers centres to the points that the threads of the block hold: all of them, by ascending index,
// or the `count` ones of a list, in any order. tile: [kLloydShared], shared memory.
template <int kDimensions, int kPoints, bool kAll>
__device__ __forceinline__ void lloyd_offer(const Lloyd& data, const LloydJob& job,
                                            const int32_t* list, int32_t count,
                                            LloydCenter<kDimensions>* tile,
                                            LloydHeld<kDimensions, kPoints>& held) {
    constexpr int32_t kTile = kLloydShared<kDimensions>;
    for (int32_t begin = 0; begin < count; begin += kTile) {
        const int32_t here = Min()(kTile, count - begin);
        __syncthreads();  // nobody needs what the tile had before
        for (int32_t i = threadIdx.x; i < here; i += blockDim.x) {
            const int32_t center = kAll ? begin + i : list[begin + i];
            for (int d = 0; d < kDimensions; ++d) {
                tile[i].at[d] = data.at[d * data.rows + job.row + center];
            }
            tile[i].index = center;
        }
        __syncthreads();
        for (int32_t i = 0; i < here; ++i) {
            const LloydCenter<kDimensions> center = tile[i];
#pragma unroll
            for (int p = 0; p < kPoints; ++p) {
                const float distance = squared_distance<kDimensions>(held.at[p], 1, center.at, 1);
                const bool closer =
                    kAll ? distance < held.distance[p]
                         : nearer(distance, center.index, held.distance[p], held.label[p]);
                held.distance[p] = closer ? distance : held.distance[p];
                held.label[p] = closer ? center.index : held.label[p];
            }
        }
    }
}

// Assigns the points from begin to end, a block's, to their nearest centres. Either all centres are
// offered to them, or those in data.moved, `moved` ones; then a point whose own centre went away
// keeps its label, and gets kLloydUnknown as its distance.
template <int kDimensions, int kPoints, bool kAll>
__device__ __forceinline__ void lloyd_assign_points(const Lloyd& data, const LloydJob& job,
                                                    int32_t begin, int32_t end, int32_t moved,
                                                    bool accounted,
                                                    LloydCenter<kDimensions>* tile) {
    const int threads = static_cast<int>(blockDim.x);
    float* const distances = data.distance + job.label;
    int64_t* const labels = data.labels + job.label;
    for (int32_t start = begin; start < end; start += threads * kPoints) {
        LloydHeld<kDimensions, kPoints> held;
        unsigned lost = 0;  // a bit for each point whose centre went away
#pragma unroll
        for (int p = 0; p < kPoints; ++p) {
            const int32_t point = start + p * threads + static_cast<int32_t>(threadIdx.x);
            held.distance[p] = kLloydFar;
            held.label[p] = kLloydNobody;
            if (point >= end) {
                for (int d = 0; d < kDimensions; ++d) held.at[p][d] = 0;
                continue;
            }
            lloyd_load_point<kDimensions>(data, job, point, held.at[p]);
            if constexpr (kAll) continue;
            const int32_t own = static_cast<int32_t>(labels[point]);
            if (data.state[job.row + own] == kLloydStays) {
                held.distance[p] = distances[point];
                held.label[p] = own;
                continue;
            }
            const float now =
                squared_distance<kDimensions>(held.at[p], 1, data.at + job.row + own, data.rows);
            if (now > distances[point]) lost |= 1u << p;
        }
        lloyd_offer<kDimensions, kPoints, kAll>(data, job, data.moved + job.row, moved, tile, held);
#pragma unroll
        for (int p = 0; p < kPoints; ++p) {
            const int32_t point = start + p * threads + static_cast<int32_t>(threadIdx.x);
            if (point >= end) continue;
            if (lost & 1u << p) {
                distances[point] = kLloydUnknown;
                continue;
            }
            distances[point] = held.distance[p];
            const int64_t before = accounted ? labels[point] : -1;
            if (before == held.label[p]) continue;
            lloyd_account(data, job, point, before, held.label[p]);
            labels[point] = held.label[p];
        }
    }
}

// The same, with as many points to a thread as there are.
template <int kDimensions, bool kAll>
__device__ __forceinline__ void lloyd_assign_block(const Lloyd& data, const LloydJob& job,
                                                   int32_t begin, int32_t end, int32_t moved,
                                                   bool accounted, LloydCenter<kDimensions>* tile) {
    constexpr int kMost = kLloydMost<kDimensions>;
    if (kMost > 1 && end - begin > static_cast<int32_t>(blockDim.x)) {
        lloyd_assign_points<kDimensions, kMost, kAll>(data, job, begin, end, moved, accounted,
                                                      tile);
    } else {
        lloyd_assign_points<kDimensions, 1, kAll>(data, job, begin, end, moved, accounted, tile);
    }
}

// Bounds of blocks a multiprocessor: left to itself, ptxas aims at more, and spills.
template <int kDimensions>
__global__ void __launch_bounds__(kLloydTileThreads, 6)
    lloyd_assign(Lloyd data, const LloydTile* tiles, bool accounted) {
    __shared__ LloydCenter<kDimensions> centers[kLloydShared<kDimensions>];
    const LloydTile tile = tiles[blockIdx.x];
    const LloydJob job = data.jobs[tile.job];
    const int64_t end = Min()(tile.begin + kLloydTile, job.count);
    lloyd_assign_block<kDimensions, true>(data, job, static_cast<int32_t>(tile.begin),
                                          static_cast<int32_t>(end), static_cast<int32_t>(job.k),
                                          accounted, centers);
}

// Points whose own centre went away look at all centres, a warp a point.
template <int kDimensions>
__device__ __forceinline__ void lloyd_look_again(const Lloyd& data, const LloydJob& job) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int32_t count = static_cast<int32_t>(job.count), k = static_cast<int32_t>(job.k);
    float* const distances = data.distance + job.label;
    int64_t* const labels = data.labels + job.label;
    for (int32_t start = static_cast<int32_t>(threadIdx.x) - lane; start < count;
         start += kLloydThreads) {
        const int32_t own = start + lane;
        unsigned lost = __ballot_sync(kAllLanes, own < count && distances[own] == kLloydUnknown);
        for (; lost != 0; lost &= lost - 1) {
            const int32_t point = start + __ffs(static_cast<int>(lost)) - 1;
            float at[kDimensions];
            lloyd_load_point<kDimensions>(data, job, point, at);
            float best_distance = kLloydFar;
            int32_t best = kLloydNobody;
            for (int32_t center = lane; center < k; center += kWarp) {
                const float distance =
                    squared_distance<kDimensions>(at, 1, data.at + job.row + center, data.rows);
                if (distance < best_distance) {
                    best_distance = distance;
                    best = center;
                }
            }
            warp_nearest(best_distance, best);
            if (lane != 0) continue;
            distances[point] = best_distance;
            if (labels[point] == best) continue;
            lloyd_account(data, job, point, labels[point], best);
            labels[point] = best;
        }
    }
}

// Every empty cluster, by ascending index, gets the point farthest from its centre, the smallest
// index among equals; a point that is its cluster's only one stays. Each takes a look at all
// points: seeds that are points leave few clusters empty, or none.
__device__ __forceinline__ void lloyd_relocate(const Lloyd& data, const LloydJob& job,
                                               int32_t* scratch, unsigned long long* wide_scratch) {
    const int32_t count = static_cast<int32_t>(job.count), k = static_cast<int32_t>(job.k);
    const int32_t* const size = data.size + job.row;
    float* const distances = data.distance + job.label;
    int64_t* const labels = data.labels + job.label;
    for (int32_t from = 0; from < k;) {
        int32_t empty = kLloydNobody;
        for (int32_t cluster = from + static_cast<int32_t>(threadIdx.x);
             cluster < k && empty == kLloydNobody; cluster += kLloydThreads) {
            if (size[cluster] == 0) empty = cluster;
        }
        empty = block_reduce(empty, Min(), scratch);
        if (empty == kLloydNobody) return;
        // Distances that are not negative order as their bits do.
        unsigned long long farthest = 0;
        for (int32_t point = threadIdx.x; point < count; point += kLloydThreads) {
            if (size[labels[point]] < 2 || !(distances[point] > 0)) continue;
            const unsigned long long bits = __float_as_uint(distances[point]);
            farthest = Max()(farthest, bits << 32 | static_cast<unsigned>(kLloydNobody - point));
        }
        farthest = block_reduce(farthest, Max(), wide_scratch);
        if (farthest == 0) return;
        if (threadIdx.x == 0) {
            const int32_t point =
                kLloydNobody - static_cast<int32_t>(static_cast<unsigned>(farthest));
            lloyd_account(data, job, point, labels[point], empty);
            labels[point] = empty;
            distances[point] = kLloydUnknown;
            data.state[job.row + empty] = kLloydRelocated;
        }
        __syncthreads();
        from = empty + 1;
    }
}

// Moves the centres to the means of their points, a thread a cluster, and lists those that moved.
// moved: how many, shared memory, 0 before.
template <int kDimensions>
__device__ __forceinline__ void lloyd_recenter(const Lloyd& data, const LloydJob& job,
                                               int32_t* moved) {
    for (int64_t cluster = threadIdx.x; cluster < job.k; cluster += kLloydThreads) {
        const int64_t row = job.row + cluster;
        bool same = data.state[row] != kLloydRelocated;
        if (data.size[row] > 0) {
            for (int d = 0; d < data.dimensions; ++d) {
                const int64_t sum = static_cast<int64_t>(data.sum[row * data.dimensions + d]);
                const float mean = fixed_mean(sum, data.size[row]);
                same &= mean == data.at[d * data.rows + row];
                data.at[d * data.rows + row] = mean;
            }
        }
        data.state[row] = same ? kLloydStays : kLloydMoved;
        if (!same) data.moved[job.row + atomicAdd(moved, 1)] = static_cast<int32_t>(cluster);
    }
}

// Whether all centres are where they were before: see kCycleStart in numerics/fixed.h. Asked after
// every iteration that moved one. scratch: shared memory.
__device__ __forceinline__ bool lloyd_cycles(const Lloyd& data, const LloydJob& job,
                                             int64_t iteration, int32_t* scratch) {
    if (iteration < kCycleStart) return false;
    const bool stores = (iteration & (iteration - 1)) == 0;
    int32_t differs = stores;
    for (int64_t i = threadIdx.x; i < job.k * data.dimensions; i += kLloydThreads) {
        const int64_t place = i % data.dimensions * data.rows + job.row + i / data.dimensions;
        if (stores) {
            data.before[place] = data.at[place];
        } else if (data.before[place] != data.at[place]) {
            differs = 1;
        }
    }
    return block_reduce(differs, Max(), scratch) == 0;
}

// The centres as the caller's coordinates are, then the sum of squared distances to them, which the
// first warp adds in the order of numerics/fixed.h.
__device__ __forceinline__ void lloyd_answer(const Lloyd& data, const LloydJob& job, float* centers,
                                             double* inertia) {
    const int dimensions = data.dimensions;
    const double scale = data.scale[job.problem];
    for (int64_t i = threadIdx.x; i < job.k * dimensions; i += kLloydThreads) {
        const int64_t row = job.row + i / dimensions;
        const double center = data.at[i % dimensions * data.rows + row];
        centers[job.row * dimensions + i] = static_cast<float>(center / scale);
    }
    __syncthreads();
    if (threadIdx.x >= kWarp) return;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < job.count; i += kSumLanes) {
        const float* const point = data.points + (job.first + i) * dimensions;
        const float* const center = centers + (job.row + data.labels[job.label + i]) * dimensions;
        double distance = 0;
        for (int d = 0; d < dimensions; ++d) {
            const double difference =
                static_cast<double>(point[d]) - static_cast<double>(center[d]);
            distance += difference * difference;
        }
        sum += distance;
    }
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
        sum += __shfl_down_sync(kAllLanes, sum, half);
    }
    if (threadIdx.x == 0) *inertia = sum;
}

template <int kDimensions>
__global__ void __launch_bounds__(kLloydThreads, 2)
    lloyd_finish(Lloyd data, int64_t max_iter,
                 float* centers,         // OUT [rows, dimensions]
                 double* inertia,        // OUT [jobs]
                 int64_t* iterations) {  // OUT [jobs]
    static_assert(kSumLanes == kWarp);
    __shared__ LloydCenter<kDimensions> tile[kLloydShared<kDimensions>];
    __shared__ int32_t scratch[kLloydThreads / kWarp];
    __shared__ unsigned long long wide_scratch[kLloydThreads / kWarp];
    __shared__ int32_t moved;
    const LloydJob job = data.jobs[blockIdx.x];
    const int32_t count = static_cast<int32_t>(job.count), k = static_cast<int32_t>(job.k);
    int64_t iteration = 0;
    while (iteration < max_iter) {
        ++iteration;
        if (threadIdx.x == 0) moved = 0;
        lloyd_relocate(data, job, scratch, wide_scratch);
        __syncthreads();
        lloyd_recenter<kDimensions>(data, job, &moved);
        __syncthreads();
        const int32_t listed = moved;
        if (listed == 0) break;
        const bool cycles = lloyd_cycles(data, job, iteration, scratch);
        if (2 * static_cast<int64_t>(listed) > k) {
            lloyd_assign_block<kDimensions, true>(data, job, 0, count, k, true, tile);
        } else {
            lloyd_assign_block<kDimensions, false>(data, job, 0, count, listed, true, tile);
            __syncthreads();
            lloyd_look_again<kDimensions>(data, job);
        }
        __syncthreads();
        if (cycles) break;
    }
    if (threadIdx.x == 0) iterations[job.index] = iteration;
    lloyd_answer(data, job, centers, inertia + job.index);
}

void launch_lloyd_assign(const Lloyd& data, const LloydTile* tiles, int64_t tile_count,
                         bool accounted, cudaStream_t stream) {
    with_dimensions(data.dimensions, [&](auto n) {
        MDCP_LAUNCH((lloyd_assign<decltype(n)::value>), dim3(static_cast<unsigned>(tile_count)),
                    kLloydTileThreads, 0, stream, data, tiles, accounted);
    });
}

void launch_lloyd_finish(const Lloyd& data, int64_t jobs, int64_t max_iter, float* centers,
                         double* inertia, int64_t* iterations, cudaStream_t stream) {
    with_dimensions(data.dimensions, [&](auto n) {
        MDCP_LAUNCH((lloyd_finish<decltype(n)::value>), dim3(static_cast<unsigned>(jobs)),
                    kLloydThreads, 0, stream, data, max_iter, centers, inertia, iterations);
    });
}

}  // namespace mdcp::cuda
