// The only file that knows Python: integer addresses in, calls with the interpreter lock released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/simd.h"
#include "native.h"

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

// The memory of a tensor: its data_ptr() as T*.
template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// A cost model from the memory of its tensors, in the order of their declaration, and its sizes.
mdcp::Cost cost_at(const std::array<Address, 6>& parts, const std::array<int64_t, 3>& sizes) {
    return {at<int64_t>(parts[0]),
            at<int64_t>(parts[1]),
            at<int64_t>(parts[2]),
            at<int64_t>(parts[3]),
            at<int64_t>(parts[4]),
            at<int64_t>(parts[5]),
            sizes[0],
            sizes[1],
            sizes[2]};
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    using release = py::call_guard<py::gil_scoped_release>;

    module.def("simd_best", &mdcp::simd_best, release());
    module.def(
        "evaluate_population",
        [](Address population, int64_t runs, int64_t candidates, int64_t axes, Address loss,
           Address loss_offsets, std::array<Address, 6> cost, std::array<int64_t, 3> cost_sizes,
           Address limits, Address fitness, int threads) {
            mdcp::evaluate_population(at<int64_t>(population), runs, candidates, axes,
                                      at<double>(loss), at<int64_t>(loss_offsets),
                                      cost_at(cost, cost_sizes), at<int64_t>(limits),
                                      at<double>(fitness), {threads, mdcp::kBaseline});
        },
        release());
    module.def(
        "channel_statistics",
        [](Address tensors, int64_t tensor_count, Address out, int threads, int simd) {
            return mdcp::channel_statistics(at<const mdcp::WeightTensor>(tensors), tensor_count,
                                            at<float>(out), {threads, simd});
        },
        release());
    module.def(
        "crowding_distance",
        [](Address points, Address offsets, int64_t segments, int32_t dimensions, Address out,
           int threads, int simd) {
            mdcp::crowding_distance(at<const float>(points), at<const int64_t>(offsets), segments,
                                    dimensions, at<float>(out), {threads, simd});
        },
        release());
    module.def(
        "ward",
        [](Address points, Address offsets, int64_t problems, int32_t dimensions, Address linkage,
           int threads, int simd) {
            mdcp::ward(at<const float>(points), at<const int64_t>(offsets), problems, dimensions,
                       at<double>(linkage), {threads, simd});
        },
        release());
    module.def(
        "kmeans",
        [](Address points, Address offsets, int64_t problems, int32_t dimensions, Address k,
           Address problem, int64_t jobs, int32_t init, Address given_centers, int64_t max_iter,
           uint64_t seed, std::array<Address, 5> out, int threads, int simd) {
            const mdcp::KMeansProblem in{at<const float>(points),
                                         at<const int64_t>(offsets),
                                         problems,
                                         dimensions,
                                         at<const int64_t>(k),
                                         at<const int64_t>(problem),
                                         jobs,
                                         static_cast<mdcp::KMeansProblem::Init>(init),
                                         at<const float>(given_centers),
                                         max_iter,
                                         seed};
            const mdcp::KMeansResult result{at<const int64_t>(out[0]), at<int64_t>(out[1]),
                                            at<float>(out[2]), at<double>(out[3]),
                                            at<int64_t>(out[4])};
            mdcp::kmeans(in, result, {threads, simd});
        },
        release());
#ifdef MDCP_WITH_CUDA
    module.attr("with_cuda") = true;
    module.def("cuda_device_count", &mdcp::cuda_device_count, release());
    module.def(
        "evaluate_population_cuda",
        [](Address population, int64_t runs, int64_t candidates, int64_t axes, Address loss,
           Address loss_offsets, std::array<Address, 6> cost, std::array<int64_t, 3> cost_sizes,
           Address limits, Address fitness, Address workspace, int device, Address stream) {
            mdcp::evaluate_population_cuda(
                at<int64_t>(population), runs, candidates, axes, at<double>(loss),
                at<int64_t>(loss_offsets), cost_at(cost, cost_sizes), at<int64_t>(limits),
                at<double>(fitness), at<void>(workspace), device, at<void>(stream));
        },
        release());
    module.def("evaluate_population_cuda_workspace", &mdcp::evaluate_population_cuda_workspace,
               release());
    module.def(
        "crowding_distance_cuda_plan",
        [](Address offsets, int64_t segments, int32_t dimensions, Address tasks) {
            const mdcp::CrowdingPlan plan = mdcp::crowding_distance_cuda_plan(
                at<const int64_t>(offsets), segments, dimensions, at<int64_t>(tasks));
            return std::array<int64_t, 4>{plan.tasks, plan.spread_tasks, plan.shared_bytes,
                                          plan.workspace_bytes};
        },
        release());
    module.def(
        "crowding_distance_cuda",
        [](Address points, Address offsets, int64_t point_count, int32_t dimensions, Address tasks,
           std::array<int64_t, 4> plan, Address out, Address workspace, int device,
           Address stream) {
            mdcp::crowding_distance_cuda(at<const float>(points), at<const int64_t>(offsets),
                                         point_count, dimensions, at<const int64_t>(tasks),
                                         {plan[0], plan[1], plan[2], plan[3]}, at<float>(out),
                                         at<void>(workspace), device, at<void>(stream));
        },
        release());
    module.def(
        "ward_cuda",
        [](Address points, Address offsets, Address tables, int64_t problems, int32_t dimensions,
           Address linkage, Address workspace, int device, Address stream) {
            mdcp::ward_cuda(at<const float>(points), at<const int64_t>(offsets),
                            at<const int64_t>(tables), problems, dimensions, at<double>(linkage),
                            at<void>(workspace), device, at<void>(stream));
        },
        release());
    module.def(
        "ward_cuda_tables",
        [](Address offsets, int64_t problems, Address tables) {
            return mdcp::ward_cuda_tables(at<const int64_t>(offsets), problems,
                                          at<int64_t>(tables));
        },
        release());
    module.def(
        "ward_cuda_workspace",
        [](Address offsets, int64_t problems, int32_t dimensions) {
            return mdcp::ward_cuda_workspace(at<const int64_t>(offsets), problems, dimensions);
        },
        release());
#else
    module.attr("with_cuda") = false;
    module.def("cuda_device_count", [] { return 0; });
#endif
}
