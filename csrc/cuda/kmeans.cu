// k-means for many jobs over many problems, bit for bit that of cpu/kmeans.cpp: what comes before
// Lloyd's iteration (cuda/lloyd.cu), and the launches in their order.
//
// Nothing waits for the device: the tables of jobs and tiles follow from the sizes and the k alone.
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "cuda/dimensions.cuh"
#include "cuda/hierarchy.cuh"
#include "cuda/launch.cuh"
#include "cuda/lloyd.cuh"
#include "cuda/seeding.cuh"
#include "numerics/fixed.h"
#include "numerics/seeding.h"
#include "ops/kmeans.h"

namespace mdcp::cuda {

constexpr int kKMeansThreads = 256;

// Scales a problem's points by a power of two into (-1, 1), a block a problem, one plane for each
// dimension. Planes beyond the points' dimensions are zero.
template <int kDimensions>
__global__ void __launch_bounds__(kKMeansThreads)
    kmeans_scale(Lloyd data, const int64_t* offsets) {  // [problems + 1]
    __shared__ float scratch[kKMeansThreads / kWarp];
    const int64_t first = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    const int dimensions = data.dimensions;
    float largest = 0;
    for (int64_t i = first * dimensions + threadIdx.x; i < end * dimensions; i += kKMeansThreads) {
        largest = Max()(largest, std::fabs(data.points[i]));
    }
    const double scale = unit_scale(block_reduce(largest, Max(), scratch));
    if (threadIdx.x == 0) data.scale[blockIdx.x] = scale;
    for (int64_t point = first + threadIdx.x; point < end; point += kKMeansThreads) {
        for (int d = 0; d < kDimensions; ++d) {
            const double value = d < dimensions ? data.points[point * dimensions + d] : 0.0f;
            data.scaled[d * data.point_count + point] = static_cast<float>(value * scale);
        }
    }
}

// Empties the clusters of a job, by a block.
__global__ void __launch_bounds__(kKMeansThreads) kmeans_clear(Lloyd data) {
    const LloydJob job = data.jobs[blockIdx.x];
    for (int64_t row = job.row + threadIdx.x; row < job.row + job.k; row += kKMeansThreads) {
        for (int d = 0; d < data.dimensions; ++d) data.sum[row * data.dimensions + d] = 0;
        data.size[row] = 0;
        data.state[row] = kLloydStays;
    }
}

// Labels the points of a tile by the cut of Ward's hierarchy into the job's k clusters. Clusters
// are numbered in the order in which the hierarchy divides them from the top: the part with the
// smallest point keeps the number, the other gets the next new one.
__global__ void __launch_bounds__(kKMeansThreads)
    kmeans_cut(Lloyd data, const LloydTile* tiles, Merges merges) {
    const LloydTile tile = tiles[blockIdx.x];
    const LloydJob job = data.jobs[tile.job];
    const int64_t end = Min()(tile.begin + kLloydTile, job.count);
    const Merge* const merge = merges.merge + job.first;
    const int32_t* const row = merges.row + job.first;
    for (int64_t point = tile.begin + threadIdx.x; point < end; point += kKMeansThreads) {
        // A cluster's smallest point names it. The first k - 1 divisions undo the last merges. The
        // way is as long as the tree is deep: of the order of ln n, n at worst.
        int32_t cluster = static_cast<int32_t>(point);
        while (cluster != 0 && row[cluster] < job.count - job.k) cluster = merge[cluster].into;
        const int64_t label = cluster == 0 ? 0 : job.count - 1 - row[cluster];
        data.labels[job.label + point] = label;
        lloyd_account(data, job, static_cast<int32_t>(point), -1, label);
    }
}

// The centres that a job starts from, by a block: the means of the cut's clusters, the points that
// k-means++ chose, or the caller's. The bound of blocks a multiprocessor keeps ptxas from spilling.
__global__ void __launch_bounds__(kKMeansThreads, 2)
    kmeans_start(Lloyd data, KMeansProblem::Init init,
                 const int32_t* seeds,  // of k-means++
                 const float* given,    // [rows, dimensions]
                 int padded) {
    const LloydJob job = data.jobs[blockIdx.x];
    const double scale = data.scale[job.problem];
    for (int64_t cluster = threadIdx.x; cluster < job.k; cluster += kKMeansThreads) {
        const int64_t row = job.row + cluster;
        for (int d = 0; d < padded; ++d) {
            float center = 0;  // beyond the given dimensions: zeros change no distance
            if (d < data.dimensions && init == KMeansProblem::kWard) {
                const int64_t sum = static_cast<int64_t>(data.sum[row * data.dimensions + d]);
                center = fixed_mean(sum, data.size[row]);
            } else if (d < data.dimensions && init == KMeansProblem::kPlusPlus) {
                const int64_t point = job.first + seeds[job.seed + cluster];
                center = data.scaled[d * data.point_count + point];
            } else if (d < data.dimensions) {
                const double value = given[row * data.dimensions + d] * scale;
                center = static_cast<float>(Max()(-kFarAway, Min()(value, kFarAway)));
            }
            data.at[d * data.rows + row] = center;
        }
    }
}

namespace {

// What the host decides, and the tables that the kernels read, behind each other.
struct KMeansPlan {
    explicit KMeansPlan(const KMeansProblem& in);

    std::vector<int64_t> tables;
    int64_t rows = 0, labels = 0, tiles = 0, tasks = 0, seeds = 0;
    int64_t ward_tables = 0;  // numbers of WardPlan's tables, which come first
};

template <class Row>
void append(std::vector<int64_t>& tables, const std::vector<Row>& rows) {
    static_assert(sizeof(Row) % sizeof(int64_t) == 0);
    const int64_t* const numbers = reinterpret_cast<const int64_t*>(rows.data());
    tables.insert(tables.end(), numbers, numbers + rows.size() * sizeof(Row) / sizeof(int64_t));
}

KMeansPlan::KMeansPlan(const KMeansProblem& in) {
    const auto size = [&](int64_t p) { return in.offsets[p + 1] - in.offsets[p]; };
    std::vector<LloydJob> jobs(in.jobs);
    std::vector<int64_t> most(in.problems, 0);  // clusters of any of a problem's jobs
    for (int64_t j = 0; j < in.jobs; ++j) {
        const int64_t p = in.problem[j];
        jobs[j] = {j, p, in.offsets[p], size(p), in.k[j], rows, labels, 0};
        rows += in.k[j];
        labels += size(p);
        most[p] = std::max(most[p], in.k[j]);
    }

    std::vector<PlusPlusTask> plus_plus;
    if (in.init == KMeansProblem::kPlusPlus) {
        std::vector<int64_t> first_seed(in.problems, 0);
        for (int64_t p = 0; p < in.problems; ++p) {
            if (most[p] == 0) continue;
            first_seed[p] = seeds;
            plus_plus.push_back(
                {in.offsets[p], size(p), most[p], seeds, plus_plus_trials(size(p))});
            seeds += most[p];
        }
        for (LloydJob& job : jobs) job.seed = first_seed[job.problem];
    }
    std::stable_sort(jobs.begin(), jobs.end(), [](const LloydJob& a, const LloydJob& b) {
        return a.count * a.k > b.count * b.k;
    });
    std::stable_sort(plus_plus.begin(), plus_plus.end(),
                     [](const PlusPlusTask& a, const PlusPlusTask& b) {
                         return a.count * a.seeds > b.count * b.seeds;
                     });
    std::vector<LloydTile> tile;
    for (int64_t j = 0; j < in.jobs; ++j) {
        for (int64_t begin = 0; begin < jobs[j].count; begin += kLloydTile) {
            tile.push_back({j, begin});
        }
    }

    if (in.init == KMeansProblem::kWard) tables = WardPlan(in.offsets, in.problems).tables;
    ward_tables = static_cast<int64_t>(tables.size());
    tables.insert(tables.end(), in.offsets, in.offsets + in.problems + 1);
    append(tables, jobs);
    append(tables, tile);
    append(tables, plus_plus);
    tiles = static_cast<int64_t>(tile.size());
    tasks = static_cast<int64_t>(plus_plus.size());
}

// Takes scratch memory from the workspace and launches everything. Where the workspace has no
// memory, nothing is launched.
void launch_kmeans(const KMeansPlan& plan, const KMeansProblem& in, const KMeansResult& out,
                   const int64_t* tables, Workspace& workspace, cudaStream_t stream) {
    const int64_t points = in.offsets[in.problems];
    const int padded = padded_dimensions(in.dimensions);
    Lloyd data{};
    data.points = in.points;
    data.dimensions = in.dimensions;
    data.point_count = points;
    data.rows = plan.rows;
    data.scaled = workspace.take<float>(padded * points);
    data.scale = workspace.take<double>(in.problems);
    data.at = workspace.take<float>(padded * plan.rows);
    data.before = workspace.take<float>(padded * plan.rows);
    data.sum = workspace.take<unsigned long long>(plan.rows * in.dimensions);
    data.size = workspace.take<int32_t>(plan.rows);
    data.state = workspace.take<int32_t>(plan.rows);
    data.moved = workspace.take<int32_t>(plan.rows);
    data.distance = workspace.take<float>(plan.labels);
    data.labels = out.labels;
    const bool drawn = in.init == KMeansProblem::kPlusPlus;
    float* const distance = workspace.take<float>(drawn ? points : 0);
    int32_t* const taken = workspace.take<int32_t>(drawn ? points : 0);
    int32_t* const seeds = workspace.take<int32_t>(plan.seeds);

    const bool launches = workspace.has_memory() && in.jobs > 0;
    const int64_t* const offsets = tables + plan.ward_tables;
    data.jobs = reinterpret_cast<const LloydJob*>(offsets + in.problems + 1);
    const auto* const tiles = reinterpret_cast<const LloydTile*>(data.jobs + in.jobs);
    const auto* const tasks = reinterpret_cast<const PlusPlusTask*>(tiles + plan.tiles);
    Merges merges{};
    if (in.init == KMeansProblem::kWard && in.jobs > 0) {
        const WardPlan ward(in.offsets, in.problems);
        merges = launch_hierarchy(ward, ward.on_device(in.points, in.dimensions, tables), workspace,
                                  stream);
    }
    if (!launches) return;

    const auto blocks = [](int64_t count) { return dim3(static_cast<unsigned>(count)); };
    with_dimensions(in.dimensions, [&](auto n) {
        MDCP_LAUNCH((kmeans_scale<decltype(n)::value>), blocks(in.problems), kKMeansThreads, 0,
                    stream, data, offsets);
    });
    MDCP_LAUNCH(kmeans_clear, blocks(in.jobs), kKMeansThreads, 0, stream, data);
    if (in.init == KMeansProblem::kWard) {
        MDCP_LAUNCH(kmeans_cut, blocks(plan.tiles), kKMeansThreads, 0, stream, data, tiles, merges);
    } else if (drawn) {
        launch_plus_plus(data, tasks, plan.tasks, in.seed, distance, taken, seeds, stream);
    }
    MDCP_LAUNCH(kmeans_start, blocks(in.jobs), kKMeansThreads, 0, stream, data, in.init, seeds,
                in.centers, padded);
    launch_lloyd_assign(data, tiles, plan.tiles, in.init == KMeansProblem::kWard, stream);
    launch_lloyd_finish(data, in.jobs, in.max_iter, out.centers, out.inertia, out.iterations,
                        stream);
}

}  // namespace

int64_t kmeans_tables(const KMeansProblem& in, int64_t* tables) {
    const KMeansPlan plan(in);
    if (tables != nullptr) std::copy(plan.tables.begin(), plan.tables.end(), tables);
    return static_cast<int64_t>(plan.tables.size());
}

int64_t kmeans_workspace(const KMeansProblem& in) {
    Workspace workspace(nullptr);
    launch_kmeans(KMeansPlan(in), in, {}, nullptr, workspace, nullptr);
    return static_cast<int64_t>(workspace.bytes());
}

void kmeans(const KMeansProblem& in, const KMeansResult& out, const Execution& execution) {
    const DeviceGuard guard(execution.device);
    Workspace workspace(execution.workspace);
    launch_kmeans(KMeansPlan(in), in, out, execution.tables, workspace,
                  static_cast<cudaStream_t>(execution.stream));
}

}  // namespace mdcp::cuda
