// Crowding distances, bit for bit those of cpu/crowding_distance.cpp.
//
// A point needs no rank along a dimension, only its neighbours in the order (key, index). One
// launch does the work of all segments, a block for each task of a table made on the host:
//   counted  several small segments: a thread looks through all points of its point's segment;
//   sorted   one segment that fits shared memory: the block sorts it along one dimension after
//            the other;
//   tile     a part of a larger segment, along one dimension: the block sorts and stores it.
// Where there are tiles, a second launch looks for every point's neighbours in all of them.
#include <algorithm>
#include <limits>

#include "cuda/launch.cuh"
#include "numerics/crowding_distance.h"
#include "ops/crowding_distance.h"

namespace mdcp::cuda {

constexpr int kCrowdingThreads = 256;  // of a block, and points of a counted task
constexpr int kCrowdingTile = 2048;    // points that a block sorts at once

enum class CrowdingWork : int64_t { kCounted, kSorted, kTile, kSpread };

// A row of the table: what one block does.
struct CrowdingTask {
    CrowdingWork work;
    int64_t segment;    // the first one
    int64_t segments;   // how many, one unless counted
    int64_t dimension;  // of a tile
    int64_t begin;      // first of the block's points, within its segment
};
constexpr int64_t kCrowdingTaskNumbers = 5;
static_assert(sizeof(CrowdingTask) == kCrowdingTaskNumbers * sizeof(int64_t));

constexpr double kCrowdingEnd = std::numeric_limits<double>::infinity();
constexpr int32_t kCrowdingBelow = std::numeric_limits<int32_t>::min();    // no finite float's key
constexpr int32_t kCrowdingAbove = std::numeric_limits<int32_t>::max();    // nor this
constexpr int64_t kCrowdingPadding = std::numeric_limits<int64_t>::max();  // behind all entries

// Numbers in the order (key, index).
__device__ __forceinline__ int64_t crowding_entry(float value, int64_t index) {
    return order_key(__float_as_int(value)) * (int64_t{1} << 32) + index;
}

__device__ __forceinline__ int32_t entry_key(int64_t entry) {
    return static_cast<int32_t>(entry >> 32);
}

__device__ __forceinline__ int32_t entry_index(int64_t entry) {
    return static_cast<int32_t>(entry);
}

// What one dimension adds to a point, from keys; previous or next is kCrowdingBelow or
// kCrowdingAbove where the point has none. A key has lost its zero's sign, which no gap shows.
__device__ __forceinline__ double gap_between(int32_t lowest, int32_t previous, int32_t next,
                                              int32_t highest) {
    if (lowest == highest) return 0;
    if (previous == kCrowdingBelow || next == kCrowdingAbove) return kCrowdingEnd;
    return crowding_gap(__int_as_float(order_key(previous)), __int_as_float(order_key(next)),
                        __int_as_float(order_key(lowest)), __int_as_float(order_key(highest)));
}

// points, out: of the first segment; offsets: of the segments. A thread has a point.
// keys: [points, dimensions], bounds: [segments + 1], shared memory.
__device__ __forceinline__ void crowd_counted(const float* points, const int64_t* offsets,
                                              int segments, int dimensions, float* out,
                                              int32_t* keys, int32_t* bounds) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i <= segments; i += kCrowdingThreads) {
        bounds[i] = static_cast<int32_t>(offsets[i] - offsets[0]);
    }
    const int count = static_cast<int>(offsets[segments] - offsets[0]);
    for (int i = thread; i < count * dimensions; i += kCrowdingThreads) {
        keys[i] = order_key(__float_as_int(points[i]));
    }
    __syncthreads();
    if (thread >= count) return;
    // The last segment that begins at or before the point: those in front may be empty.
    int segment = 0;
    for (int beyond = segments; beyond - segment > 1;) {
        const int middle = (segment + beyond) / 2;
        if (bounds[middle] <= thread) {
            segment = middle;
        } else {
            beyond = middle;
        }
    }
    const int begin = bounds[segment];
    const int end = bounds[segment + 1];
    if (end - begin <= 2) {
        out[thread] = static_cast<float>(kCrowdingEnd);
        return;
    }
    double total = 0;
    for (int dimension = 0; dimension < dimensions; ++dimension) {
        const int32_t* column = keys + dimension;
        const int32_t mine = column[thread * dimensions];
        int32_t lowest = mine;
        int32_t previous = kCrowdingBelow;
        int32_t next = kCrowdingAbove;
        int32_t highest = mine;
        for (int other = begin; other < end; ++other) {
            const int32_t key = column[other * dimensions];
            lowest = min(lowest, key);
            highest = max(highest, key);
            // Of two alike the one of the smaller index comes first.
            const bool before = key < mine || (key == mine && other < thread);
            if (before) {
                previous = max(previous, key);
            } else if (other != thread) {
                next = min(next, key);
            }
        }
        total += gap_between(lowest, previous, next, highest);
    }
    out[thread] = static_cast<float>(total);
}

// Sorts `size` entries, a power of two, in shared memory: Batcher's bitonic network.
__device__ __forceinline__ void block_sort(int64_t* entries, int size) {
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            for (int pair = static_cast<int>(threadIdx.x); pair < size / 2;
                 pair += kCrowdingThreads) {
                const int low = 2 * pair - (pair & (step - 1));
                const int64_t a = entries[low];
                const int64_t b = entries[low + step];
                const bool rising = (low & run) == 0;
                if ((b < a) == rising) {
                    entries[low] = b;
                    entries[low + step] = a;
                }
            }
            __syncthreads();
        }
    }
}

// Fills entries with those of `count` points along a dimension, then sorts them. points: of the
// first; index: its index. size: a power of two, at least count.
__device__ __forceinline__ void sort_points(const float* points, int count, int dimensions,
                                            int dimension, int64_t index, int size,
                                            int64_t* entries) {
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kCrowdingThreads) {
        entries[i] = i < count
                         ? crowding_entry(points[static_cast<int64_t>(i) * dimensions + dimension],
                                          index + i)
                         : kCrowdingPadding;
    }
    __syncthreads();
    block_sort(entries, size);
}

// points, out: of the segment's `count` points. entries: [size], totals: [count], shared memory.
__device__ __forceinline__ void crowd_sorted(const float* points, int count, int dimensions,
                                             int size, float* out, int64_t* entries,
                                             double* totals) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < count; i += kCrowdingThreads) totals[i] = 0;
    for (int dimension = 0; dimension < dimensions; ++dimension) {
        sort_points(points, count, dimensions, dimension, 0, size, entries);
        for (int place = thread; place < count; place += kCrowdingThreads) {
            const int32_t previous = place > 0 ? entry_key(entries[place - 1]) : kCrowdingBelow;
            const int32_t next = place < count - 1 ? entry_key(entries[place + 1]) : kCrowdingAbove;
            totals[entry_index(entries[place])] +=
                gap_between(entry_key(entries[0]), previous, next, entry_key(entries[count - 1]));
        }
        __syncthreads();
    }
    for (int i = thread; i < count; i += kCrowdingThreads) out[i] = static_cast<float>(totals[i]);
}

__host__ __device__ inline int power_of_two_from(int64_t count) {
    int size = 2;
    while (size < count) size *= 2;
    return size;
}

// At least 4 blocks a multiprocessor: left to itself, ptxas aims at 6 on sm_120, and spills.
__global__ void __launch_bounds__(kCrowdingThreads, 4)
    crowding_kernel(const float* points,        // [offsets[segments], dimensions]
                    const int64_t* offsets,     // [segments + 1]
                    const CrowdingTask* tasks,  // [blocks]
                    int dimensions,
                    int64_t* tiles,  // OUT [dimensions, point_count] entries, sorted by tiles
                    int64_t point_count,
                    float* out) {  // OUT [offsets[segments]]
    MDCP_DYNAMIC_SHARED(int64_t, shared);
    const CrowdingTask task = tasks[blockIdx.x];
    const int64_t first = offsets[task.segment];
    const int64_t count = offsets[task.segment + task.segments] - first;
    const float* mine = points + first * dimensions;
    if (task.work == CrowdingWork::kCounted) {
        int32_t* bounds = reinterpret_cast<int32_t*>(shared);
        crowd_counted(mine, offsets + task.segment, static_cast<int>(task.segments), dimensions,
                      out + first, bounds + task.segments + 1, bounds);
    } else if (task.work == CrowdingWork::kSorted) {
        const int size = power_of_two_from(count);
        crowd_sorted(mine, static_cast<int>(count), dimensions, size, out + first, shared,
                     reinterpret_cast<double*>(shared + size));
    } else {
        const int64_t left = count - task.begin;
        const int here = static_cast<int>(left < kCrowdingTile ? left : kCrowdingTile);
        sort_points(mine + task.begin * dimensions, here, dimensions,
                    static_cast<int>(task.dimension), task.begin, kCrowdingTile, shared);
        int64_t* tile = tiles + task.dimension * point_count + first + task.begin;
        for (int i = static_cast<int>(threadIdx.x); i < here; i += kCrowdingThreads) {
            tile[i] = shared[i];
        }
    }
}

// How many of the sorted entries are less than `entry`.
__device__ __forceinline__ int64_t entries_before(const int64_t* entries, int64_t count,
                                                  int64_t entry) {
    int64_t before = 0;
    for (int64_t beyond = count; before < beyond;) {
        const int64_t middle = (before + beyond) / 2;
        if (entries[middle] < entry) {
            before = middle + 1;
        } else {
            beyond = middle;
        }
    }
    return before;
}

// A thread has a point of a segment of tiles.
__global__ void __launch_bounds__(kCrowdingThreads)
    crowding_spread_kernel(const float* points,        // [point_count, dimensions]
                           const int64_t* offsets,     // [segments + 1]
                           const CrowdingTask* tasks,  // [blocks]
                           int dimensions,
                           const int64_t* tiles,  // [dimensions, point_count]
                           int64_t point_count,
                           float* out) {  // OUT [point_count]
    const CrowdingTask task = tasks[blockIdx.x];
    const int64_t first = offsets[task.segment];
    const int64_t count = offsets[task.segment + 1] - first;
    const int64_t index = task.begin + threadIdx.x;
    if (index >= count) return;
    double total = 0;
    for (int dimension = 0; dimension < dimensions; ++dimension) {
        const int64_t mine =
            crowding_entry(points[(first + index) * dimensions + dimension], index);
        int32_t lowest = kCrowdingAbove;
        int32_t previous = kCrowdingBelow;
        int32_t next = kCrowdingAbove;
        int32_t highest = kCrowdingBelow;
        for (int64_t begin = 0; begin < count; begin += kCrowdingTile) {
            const int64_t* tile = tiles + dimension * point_count + first + begin;
            const int64_t left = count - begin;
            const int64_t here = left < kCrowdingTile ? left : kCrowdingTile;
            const int64_t before = entries_before(tile, here, mine);
            if (before > 0) previous = max(previous, entry_key(tile[before - 1]));
            const int64_t after = before < here && tile[before] == mine ? before + 1 : before;
            if (after < here) next = min(next, entry_key(tile[after]));
            lowest = min(lowest, entry_key(tile[0]));
            highest = max(highest, entry_key(tile[here - 1]));
        }
        total += gap_between(lowest, previous, next, highest);
    }
    out[first + index] = static_cast<float>(total);
}

namespace {

// Calls emit(task, shared bytes) for every block of the first launch, the long ones first, then for
// those of the second.
template <class Emit>
void for_each_task(const int64_t* offsets, int64_t segments, int64_t dimensions, Emit emit) {
    const auto size = [&](int64_t segment) { return offsets[segment + 1] - offsets[segment]; };
    for (int64_t segment = 0; segment < segments; ++segment) {
        const int64_t count = size(segment);
        if (count <= kCrowdingThreads) continue;
        if (count <= kCrowdingTile) {
            emit({CrowdingWork::kSorted, segment, 1, 0, 0}, (power_of_two_from(count) + count) * 8);
            continue;
        }
        for (int64_t dimension = 0; dimension < dimensions; ++dimension) {
            for (int64_t begin = 0; begin < count; begin += kCrowdingTile) {
                emit({CrowdingWork::kTile, segment, 1, dimension, begin}, kCrowdingTile * 8);
            }
        }
    }
    for (int64_t segment = 0, end; segment < segments; segment = end) {
        int64_t points = size(segment);
        for (end = segment + 1; end < segments && end - segment < kCrowdingThreads; ++end) {
            if (points + size(end) > kCrowdingThreads) break;
            points += size(end);
        }
        if (points == 0 || points > kCrowdingThreads) continue;
        emit({CrowdingWork::kCounted, segment, end - segment, 0, 0},
             (end - segment + 1 + points * dimensions) * 4);
    }
    for (int64_t segment = 0; segment < segments; ++segment) {
        if (size(segment) <= kCrowdingTile) continue;
        for (int64_t begin = 0; begin < size(segment); begin += kCrowdingThreads) {
            emit({CrowdingWork::kSpread, segment, 1, 0, begin}, 0);
        }
    }
}

// What the host decides from the sizes alone.
struct CrowdingPlan {
    int64_t tasks;         // blocks of the first launch
    int64_t spread_tasks;  // blocks of the second launch, if any
    int64_t shared_bytes;  // of a block of the first
};

// Writes the tasks too, unless null: [tasks + spread_tasks].
CrowdingPlan plan_crowding(const CrowdingDistanceProblem& in, CrowdingTask* tasks) {
    CrowdingPlan plan{};
    for_each_task(in.offsets, in.segments, in.dimensions,
                  [&](CrowdingTask task, int64_t shared_bytes) {
                      if (tasks != nullptr) *tasks++ = task;
                      ++(task.work == CrowdingWork::kSpread ? plan.spread_tasks : plan.tasks);
                      plan.shared_bytes = std::max(plan.shared_bytes, shared_bytes);
                  });
    return plan;
}

}  // namespace

// The offsets, then the tasks.
int64_t crowding_distance_tables(const CrowdingDistanceProblem& in, int64_t* tables) {
    CrowdingTask* tasks = nullptr;
    if (tables != nullptr) {
        tasks = reinterpret_cast<CrowdingTask*>(
            std::copy(in.offsets, in.offsets + in.segments + 1, tables));
    }
    const CrowdingPlan plan = plan_crowding(in, tasks);
    return in.segments + 1 + (plan.tasks + plan.spread_tasks) * kCrowdingTaskNumbers;
}

int64_t crowding_distance_workspace(const CrowdingDistanceProblem& in) {
    if (plan_crowding(in, nullptr).spread_tasks == 0) return 0;
    return in.offsets[in.segments] * in.dimensions * 8;
}

void crowding_distance(const CrowdingDistanceProblem& in, const CrowdingDistanceResult& out,
                       const Execution& execution) {
    const DeviceGuard guard(execution.device);
    const CrowdingPlan plan = plan_crowding(in, nullptr);
    const int64_t* offsets = execution.tables;
    const auto* tasks = reinterpret_cast<const CrowdingTask*>(offsets + in.segments + 1);
    int64_t* tiles = static_cast<int64_t*>(execution.workspace);
    const int64_t point_count = in.offsets[in.segments];
    if (plan.tasks > 0) {
        MDCP_LAUNCH(crowding_kernel, static_cast<unsigned>(plan.tasks), kCrowdingThreads,
                    static_cast<size_t>(plan.shared_bytes), execution.stream, in.points, offsets,
                    tasks, in.dimensions, tiles, point_count, out.distances);
    }
    if (plan.spread_tasks > 0) {
        MDCP_LAUNCH(crowding_spread_kernel, static_cast<unsigned>(plan.spread_tasks),
                    kCrowdingThreads, 0, execution.stream, in.points, offsets, tasks + plan.tasks,
                    in.dimensions, tiles, point_count, out.distances);
    }
}

}  // namespace mdcp::cuda
