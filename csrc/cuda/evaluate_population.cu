// The fitness of all candidates of all runs, bit for bit that of cpu/evaluate_population.cpp.
//
// One launch finds every axis's worst loss, a warp for each. One launch scores the candidates, a
// block for each at a time: whole numbers are added up in any order, doubles by one thread, in
// that of the axes.
#include <algorithm>
#include <type_traits>

#include "cuda/launch.cuh"
#include "ops/evaluate_population.h"

namespace mdcp::cuda {

constexpr int kPopulationThreads = 128;
constexpr int kPopulationWarps = kPopulationThreads / kWarp;
// Each candidate needs a number for every axis and for every count. As many fit shared memory, and
// leave room for several blocks on a processor.
constexpr int64_t kPopulationSharedNumbers = 3072;
// Otherwise every block has them in the workspace, and so there are not more blocks than a large
// device runs at a time.
constexpr int64_t kPopulationWideBlocks = 512;

__global__ void __launch_bounds__(kPopulationThreads)
    population_worst_kernel(const double* loss,           // [sum of channels]
                            const int64_t* loss_offsets,  // [axes + 1]
                            int64_t axes,
                            double* worst) {  // OUT [axes]
    const int64_t axis = static_cast<int64_t>(blockIdx.x) * kPopulationWarps + threadIdx.x / kWarp;
    if (axis >= axes) return;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t begin = loss_offsets[axis];
    const int64_t end = loss_offsets[axis + 1];
    double largest = loss[begin];
    for (int64_t i = begin + lane; i < end; i += kWarp) largest = Max{}(largest, loss[i]);
    largest = warp_reduce(largest, Max{});
    if (lane == 0) worst[axis] = largest;
}

// kShared: the scratch numbers are in shared memory, not in the workspace. kTables: costs have
// tables, whose look-ups take so many registers that those without pay nothing for them. Then at
// least 8 blocks a multiprocessor: left to itself, ptxas aims at 12, and spills.
template <bool kShared, bool kTables>
__global__ void __launch_bounds__(kPopulationThreads, kTables ? 8 : 0)
    population_kernel(const int64_t* population,  // [total, axes]
                      int64_t total,              // candidates of all runs
                      int64_t candidates,         // of a run
                      int64_t axes,
                      const double* loss,           // [sum of channels]
                      const int64_t* loss_offsets,  // [axes + 1]
                      Cost cost,
                      const int64_t* limits,  // [runs, costs]
                      const double* worst,    // [axes]
                      int64_t* scratch,       // [blocks, counts + axes]
                      double* fitness) {      // OUT [total]
    __shared__ int64_t sums[kPopulationWarps];
    MDCP_DYNAMIC_SHARED(int64_t, shared);
    int64_t* count = kShared ? shared : scratch + blockIdx.x * (cost.counts + axes);
    double* losses = reinterpret_cast<double*>(count + cost.counts);
    for (int64_t candidate = blockIdx.x; candidate < total; candidate += gridDim.x) {
        const int64_t* widths = population + candidate * axes;
        const int64_t* limit = limits + candidate / candidates * cost.costs;
        for (int64_t c = threadIdx.x; c < cost.counts; c += kPopulationThreads) {
            count[c] = count_positions(cost, c, widths);
        }
        __syncthreads();
        double violation = 0;  // the same in every thread
        for (int64_t m = 0; m < cost.costs; ++m) {
            int64_t part = 0;
            for (int64_t t = threadIdx.x; t < cost.term_count; t += kPopulationThreads) {
                part += cost_of_term(cost, m, t, count);
            }
            if constexpr (kTables) {
                const int64_t end = cost.table_offsets[m + 1];
                for (int64_t t = cost.table_offsets[m] + threadIdx.x; t < end;
                     t += kPopulationThreads) {
                    part += cost_of_table(cost, t, count);
                }
            }
            violation += excess(block_reduce(part, Sum{}, sums), limit[m]);
        }
        for (int64_t a = threadIdx.x; a < axes; a += kPopulationThreads) {
            losses[a] = violation > 0 ? worst[a] : loss_of_width(loss, loss_offsets, a, widths[a]);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            double sum = 0;
            for (int64_t a = 0; a < axes; ++a) sum += losses[a];
            fitness[candidate] = violation > 0 ? sum + violation : sum;
        }
        // The next candidate's losses wait for this thread too, at the barrier behind its counts.
    }
}

namespace {

bool fits_shared(int64_t axes, int64_t counts) {
    return axes + counts <= kPopulationSharedNumbers;
}

int64_t population_blocks(int64_t total, int64_t axes, int64_t counts) {
    const int64_t most = fits_shared(axes, counts) ? int64_t{1} << 30 : kPopulationWideBlocks;
    return std::min(total, most);
}

}  // namespace

int64_t evaluate_population_workspace(const EvaluatePopulationProblem& in) {
    const int64_t axes = in.axes, counts = in.cost.counts;
    const int64_t blocks = population_blocks(in.runs * in.candidates, axes, counts);
    return (axes + (fits_shared(axes, counts) ? 0 : blocks * (axes + counts))) * 8;
}

void evaluate_population(const EvaluatePopulationProblem& in, const EvaluatePopulationResult& out,
                         const Execution& execution) {
    const int64_t total = in.runs * in.candidates, axes = in.axes, counts = in.cost.counts;
    if (total == 0) return;
    const DeviceGuard guard(execution.device);
    double* worst = static_cast<double*>(execution.workspace);
    int64_t* scratch = static_cast<int64_t*>(execution.workspace) + axes;
    if (axes > 0) {
        MDCP_LAUNCH(population_worst_kernel,
                    static_cast<unsigned>(ceil_div(axes, kPopulationWarps)), kPopulationThreads, 0,
                    execution.stream, in.loss, in.loss_offsets, axes, worst);
    }
    const auto blocks = static_cast<unsigned>(population_blocks(total, axes, counts));
    const bool fits = fits_shared(axes, counts);
    const size_t shared = fits ? static_cast<size_t>(axes + counts) * 8 : 0;
    const auto score = [&](auto in_shared, auto tables) {
        MDCP_LAUNCH((population_kernel<decltype(in_shared)::value, decltype(tables)::value>),
                    blocks, kPopulationThreads, shared, execution.stream, in.population, total,
                    in.candidates, axes, in.loss, in.loss_offsets, in.cost, in.limits, worst,
                    scratch, out.fitness);
    };
    using Yes = std::true_type;
    using No = std::false_type;
    if (in.cost.table_count > 0) {
        fits ? score(Yes(), Yes()) : score(No(), Yes());
    } else {
        fits ? score(Yes(), No()) : score(No(), No());
    }
}

}  // namespace mdcp::cuda
