// The op `ward`: the hierarchies (cuda/hierarchy.cu), written as linkage, bit for bit that of
// cpu/ward.cpp.
#include <algorithm>

#include "cuda/hierarchy.cuh"
#include "cuda/launch.cuh"
#include "numerics/ward.h"
#include "ops/ward.h"

namespace mdcp::cuda {

// The rows of scipy.cluster.hierarchy.linkage, a thread a merge.
__global__ void __launch_bounds__(kWardTile)
    ward_write(WardProblems problems, Merges all, double* linkage) {
    const int64_t problem = problems.tile_problem[blockIdx.x];
    const int64_t first = problems.offsets[problem];
    const int32_t count = static_cast<int32_t>(problems.offsets[problem + 1] - first);
    const int32_t own = static_cast<int32_t>(problems.tile_begin[blockIdx.x] + threadIdx.x);
    if (own == 0 || own >= count) return;
    const Merges merges = ward_merges(all, first);
    const Merge merge = merges.merge[own];
    const int32_t a = merge.left < count ? merge.left : count + merges.row[merge.left - count];
    const int32_t b = merge.right < count ? merge.right : count + merges.row[merge.right - count];
    double* const row = linkage + 4 * (problems.rows[problem] + merges.row[own]);
    row[0] = Min()(a, b);
    row[1] = Max()(a, b);
    row[2] = ward_height(merges.cost[own]);
    row[3] = merge.size;
}

int64_t ward_tables(const WardProblem& in, int64_t* tables) {
    const WardPlan plan(in.offsets, in.problems);
    if (tables != nullptr) std::copy(plan.tables.begin(), plan.tables.end(), tables);
    return static_cast<int64_t>(plan.tables.size());
}

int64_t ward_workspace(const WardProblem& in) {
    const WardPlan plan(in.offsets, in.problems);
    Workspace workspace(nullptr);
    WardProblems sizes{};
    sizes.dimensions = in.dimensions;
    launch_hierarchy(plan, sizes, workspace, nullptr);
    return static_cast<int64_t>(workspace.bytes());
}

void ward(const WardProblem& in, const WardResult& out, const Execution& execution) {
    const DeviceGuard guard(execution.device);
    const WardPlan plan(in.offsets, in.problems);
    const WardProblems problems = plan.on_device(in.points, in.dimensions, execution.tables);
    Workspace workspace(execution.workspace);
    const auto stream = static_cast<cudaStream_t>(execution.stream);
    const Merges merges = launch_hierarchy(plan, problems, workspace, stream);
    if (plan.tiles == 0) return;
    MDCP_LAUNCH(ward_write, dim3(static_cast<unsigned>(plan.tiles)), kWardTile, 0, stream, problems,
                merges, out.linkage);
}

}  // namespace mdcp::cuda
