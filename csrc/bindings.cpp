// The only file that knows Python: integer addresses in, calls with the interpreter lock released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

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

// The members of EvolutionState, in their order.
mdcp::EvolutionState evolution_state(const std::array<uint64_t, 19>& in) {
    return {at<int64_t>(in[0]),
            at<int64_t>(in[1]),
            at<double>(in[2]),
            at<double>(in[3]),
            at<double>(in[4]),
            at<double>(in[5]),
            at<double>(in[6]),
            at<double>(in[7]),
            at<double>(in[8]),
            at<double>(in[9]),
            at<int64_t>(in[10]),
            at<double>(in[11]),
            at<double>(in[12]),
            at<int64_t>(in[13]),
            static_cast<int64_t>(in[14]),
            static_cast<int64_t>(in[15]),
            static_cast<int64_t>(in[16]),
            static_cast<int64_t>(in[17]),
            static_cast<int64_t>(in[18])};
}

// The members of KMeansProblem, in their order.
mdcp::KMeansProblem kmeans_problem(const std::array<uint64_t, 11>& in) {
    return {at<const float>(in[0]),
            at<const int64_t>(in[1]),
            static_cast<int64_t>(in[2]),
            static_cast<int32_t>(in[3]),
            at<const int64_t>(in[4]),
            at<const int64_t>(in[5]),
            static_cast<int64_t>(in[6]),
            static_cast<mdcp::KMeansProblem::Init>(in[7]),
            at<const float>(in[8]),
            static_cast<int64_t>(in[9]),
            in[10]};
}

mdcp::KMeansResult kmeans_result(const std::array<Address, 5>& out) {
    return {at<const int64_t>(out[0]), at<int64_t>(out[1]), at<float>(out[2]), at<double>(out[3]),
            at<int64_t>(out[4])};
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
            return mdcp::evaluate_population(at<int64_t>(population), runs, candidates, axes,
                                             at<double>(loss), at<int64_t>(loss_offsets),
                                             cost_at(cost, cost_sizes), at<int64_t>(limits),
                                             at<double>(fitness), {threads, mdcp::kBaseline});
        },
        release());
    module.attr("generator_words") = mdcp::kGeneratorWords;
    module.def(
        "random_seed",
        [](Address seeds, int64_t runs, Address generators) {
            mdcp::random_seed(at<const int64_t>(seeds), runs, at<uint32_t>(generators));
        },
        release());
    module.def(
        "random_uniform",
        [](Address generators, int64_t runs, int64_t count, Address out) {
            mdcp::random_uniform(at<uint32_t>(generators), runs, count, at<double>(out));
        },
        release());
    using State = std::array<uint64_t, 19>;
    module.def(
        "evolution_round",
        [](const State& state, int64_t n, Address candidates) {
            mdcp::evolution_round(evolution_state(state), n, at<int64_t>(candidates));
        },
        release());
    module.def(
        "evolution_mutate",
        [](const State& state, int64_t n, int64_t greedy, Address chance, Address normal) {
            mdcp::evolution_mutate(evolution_state(state), n, greedy, at<const double>(chance),
                                   at<const double>(normal));
        },
        release());
    module.def(
        "evolution_remember",
        [](const State& state, int64_t n, int64_t capacity, Address fitness, Address keys) {
            mdcp::evolution_remember(evolution_state(state), n, capacity, at<const double>(fitness),
                                     at<const double>(keys));
        },
        release());
    module.def(
        "evolution_take",
        [](const State& state, int64_t n, Address fitness, Address best, Address best_fitness) {
            mdcp::evolution_take(evolution_state(state), n, at<const double>(fitness),
                                 at<int64_t>(best), at<double>(best_fitness));
        },
        release());
    module.def(
        "evolution_shrink",
        [](const State& state, int64_t n, int64_t left, int64_t capacity) {
            mdcp::evolution_shrink(evolution_state(state), n, left, capacity);
        },
        release());
    module.def(
        "descent_moves",
        [](Address start, int64_t runs, int64_t moves, int64_t width, Address low, Address high,
           int64_t octaves, Address chance, Address candidates) {
            mdcp::descent_moves(at<const int64_t>(start), runs, moves, width,
                                at<const int64_t>(low), at<const int64_t>(high), octaves,
                                at<const double>(chance), at<int64_t>(candidates));
        },
        release());
    module.def(
        "descent_take",
        [](Address candidates, Address fitness, int64_t runs, int64_t moves, int64_t width,
           int64_t patience, Address best, Address best_fitness, Address idle) {
            return mdcp::descent_take(at<const int64_t>(candidates), at<const double>(fitness),
                                      runs, moves, width, patience, at<int64_t>(best),
                                      at<double>(best_fitness), at<int64_t>(idle));
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
        [](const std::array<uint64_t, 11>& in, const std::array<Address, 5>& out, int threads,
           int simd) { mdcp::kmeans(kmeans_problem(in), kmeans_result(out), {threads, simd}); },
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
    module.def(
        "kmeans_cuda",
        [](const std::array<uint64_t, 11>& in, const std::array<Address, 5>& out, Address tables,
           Address workspace, int device, Address stream) {
            mdcp::kmeans_cuda(kmeans_problem(in), kmeans_result(out), at<const int64_t>(tables),
                              at<void>(workspace), device, at<void>(stream));
        },
        release());
    module.def(
        "kmeans_cuda_tables",
        [](const std::array<uint64_t, 11>& in, Address tables) {
            return mdcp::kmeans_cuda_tables(kmeans_problem(in), at<int64_t>(tables));
        },
        release());
    module.def(
        "kmeans_cuda_workspace",
        [](const std::array<uint64_t, 11>& in) {
            return mdcp::kmeans_cuda_workspace(kmeans_problem(in));
        },
        release());
#else
    module.attr("with_cuda") = false;
    module.def("cuda_device_count", [] { return 0; });
#endif
}
