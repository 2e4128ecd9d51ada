// The linkage of many problems, each by one thread, or a few of them by several each.
#include "ops/ward.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/hierarchy.h"
#include "cpu/parallel.h"
#include "cpu/spatial.h"
#include "cpu/trimmed.h"
#include "numerics/ward.h"

namespace mdcp::cpu {

void ward(const WardProblem& in, const WardResult& out, Execution execution) {
    const int64_t problems = in.problems;
    std::vector<int64_t> order(problems), row(problems + 1, 0);
    std::iota(order.begin(), order.end(), 0);
    const auto size = [&](int64_t problem) {
        return in.offsets[problem + 1] - in.offsets[problem];
    };
    for (int64_t p = 0; p < problems; ++p) row[p + 1] = row[p] + std::max<int64_t>(size(p) - 1, 0);
    // The largest first, so that none is left over when the others are done.
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return size(a) > size(b); });
    const int inner = std::max<int>(1, execution.threads / std::max<int64_t>(problems, 1));
    parallel_for(problems, execution.threads, [&](int, int64_t item) {
        const int64_t problem = order[item];
        const int64_t count = size(problem);
        const float* given = in.points + in.offsets[problem] * in.dimensions;
        const Trimmed own(given, count, in.dimensions,
                          used_dimensions(given, count, in.dimensions));
        const std::vector<Merge> merges = ward_hierarchy(
            own.points, count, own.dimensions, spatial_order(own.points, count, own.dimensions),
            {inner, execution.simd});
        double* rows = out.linkage + 4 * row[problem];
        for (const Merge& merge : merges) {
            *rows++ = merge.first;
            *rows++ = merge.second;
            *rows++ = ward_height(merge.cost);
            *rows++ = merge.size;
        }
    });
}

}  // namespace mdcp::cpu
