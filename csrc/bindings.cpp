// The only file that knows the Python module: structs by the names of their members, calls with the
// interpreter lock released.
#include <pybind11/pybind11.h>

#include "cpu/simd.h"
#include "members.h"
#include "ops/channel_statistics.h"
#include "ops/crowding_distance.h"
#include "ops/evaluate_population.h"
#include "ops/evolution.h"
#include "ops/kmeans.h"
#include "ops/ward.h"
#ifdef MDCP_WITH_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;
namespace cpu = mdcp::cpu;
namespace cuda = mdcp::cuda;
using Address = std::uintptr_t;
using release = py::call_guard<py::gil_scoped_release>;

namespace {

// The memory of a tensor: its data_ptr() as T*.
template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

#define MEMBER(name) MDCP_MEMBER(Struct, name)

void declare_problems(py::module_& module) {
    {
        using Struct = mdcp::ChannelStatisticsProblem;
        mdcp::declare_struct(module, "ChannelStatisticsProblem", MEMBER(addresses), MEMBER(types),
                             MEMBER(rows), MEMBER(row_lengths), MEMBER(tensors));
    }
    {
        using Struct = mdcp::CrowdingDistanceProblem;
        mdcp::declare_struct(module, "CrowdingDistanceProblem", MEMBER(points), MEMBER(offsets),
                             MEMBER(segments), MEMBER(dimensions));
    }
    {
        using Struct = mdcp::Cost;
        mdcp::declare_struct(module, "Cost", MEMBER(constant), MEMBER(offsets), MEMBER(axis),
                             MEMBER(factor), MEMBER(terms), MEMBER(coefficients), MEMBER(tables),
                             MEMBER(table_offsets), MEMBER(edges), MEMBER(edge_offsets),
                             MEMBER(values), MEMBER(value_offsets), MEMBER(table_count),
                             MEMBER(counts), MEMBER(term_count), MEMBER(costs));
    }
    {
        using Struct = mdcp::EvaluatePopulationProblem;
        mdcp::declare_struct(module, "EvaluatePopulationProblem", MEMBER(population), MEMBER(runs),
                             MEMBER(candidates), MEMBER(axes), MEMBER(loss), MEMBER(loss_offsets),
                             MEMBER(cost), MEMBER(limits));
    }
    {
        using Struct = mdcp::WardProblem;
        mdcp::declare_struct(module, "WardProblem", MEMBER(points), MEMBER(offsets),
                             MEMBER(problems), MEMBER(dimensions));
    }
    {
        using Struct = mdcp::KMeansProblem;
        py::enum_<Struct::Init>(module, "KMeansInit", py::module_local())
            .value("ward", Struct::kWard)
            .value("k-means++", Struct::kPlusPlus)
            .value("given", Struct::kGiven);
        mdcp::declare_struct(module, "KMeansProblem", MEMBER(points), MEMBER(offsets),
                             MEMBER(problems), MEMBER(dimensions), MEMBER(k), MEMBER(problem),
                             MEMBER(jobs), MEMBER(init), MEMBER(centers), MEMBER(max_iter),
                             MEMBER(seed));
    }
}

void declare_results(py::module_& module) {
    {
        using Struct = mdcp::ChannelStatisticsResult;
        mdcp::declare_struct(module, "ChannelStatisticsResult", MEMBER(statistics));
    }
    {
        using Struct = mdcp::CrowdingDistanceResult;
        mdcp::declare_struct(module, "CrowdingDistanceResult", MEMBER(distances));
    }
    {
        using Struct = mdcp::EvaluatePopulationResult;
        mdcp::declare_struct(module, "EvaluatePopulationResult", MEMBER(fitness));
    }
    {
        using Struct = mdcp::WardResult;
        mdcp::declare_struct(module, "WardResult", MEMBER(linkage));
    }
    {
        using Struct = mdcp::KMeansResult;
        mdcp::declare_struct(module, "KMeansResult", MEMBER(offsets), MEMBER(labels),
                             MEMBER(centers), MEMBER(inertia), MEMBER(iterations));
    }
}

void declare_executions(py::module_& module) {
    {
        using Struct = cpu::Execution;
        mdcp::declare_struct(module, "Execution", MEMBER(threads), MEMBER(simd));
    }
    {
        using Struct = cuda::Execution;
        mdcp::declare_struct(module, "CudaExecution", MEMBER(tables), MEMBER(workspace),
                             MEMBER(device), MEMBER(stream));
    }
}

void define_cpu_ops(py::module_& module) {
    module.def("simd_best", &cpu::simd_best, release());
    module.def("channel_statistics", &cpu::channel_statistics, release());
    module.def("crowding_distance", &cpu::crowding_distance, release());
    module.def("evaluate_population", &cpu::evaluate_population, release());
    module.def("ward", &cpu::ward, release());
    module.def("kmeans", &cpu::kmeans, release());
}

void define_evolution(py::module_& module) {
    using namespace py::literals;
    using Struct = cpu::EvolutionState;
    constexpr py::kw_only by_name{};

    mdcp::declare_struct(module, "EvolutionState", MEMBER(low), MEMBER(high), MEMBER(bottom),
                         MEMBER(top), MEMBER(members), MEMBER(trials), MEMBER(scores),
                         MEMBER(scales), MEMBER(rates), MEMBER(archive), MEMBER(archived),
                         MEMBER(scale_memory), MEMBER(rate_memory), MEMBER(slot), MEMBER(runs),
                         MEMBER(population), MEMBER(width), MEMBER(archive_rows), MEMBER(history));
    module.attr("generator_words") = cpu::kGeneratorWords;
    module.attr("mutation_chances") = cpu::kMutationChances;
    module.def(
        "random_seed",
        [](Address seeds, int64_t runs, Address generators) {
            cpu::random_seed(at<const int64_t>(seeds), runs, at<uint32_t>(generators));
        },
        by_name, "seeds"_a, "runs"_a, "generators"_a, release());
    module.def(
        "random_uniform",
        [](Address generators, int64_t runs, int64_t count, Address out) {
            cpu::random_uniform(at<uint32_t>(generators), runs, count, at<double>(out));
        },
        by_name, "generators"_a, "runs"_a, "count"_a, "out"_a, release());
    module.def(
        "evolution_round",
        [](const Struct& state, int64_t n, Address candidates) {
            cpu::evolution_round(state, n, at<int64_t>(candidates));
        },
        "state"_a, by_name, "n"_a, "candidates"_a, release());
    module.def(
        "evolution_mutate",
        [](const Struct& state, int64_t n, int64_t greedy, Address chance, Address normal) {
            cpu::evolution_mutate(state, n, greedy, at<const double>(chance),
                                  at<const double>(normal));
        },
        "state"_a, by_name, "n"_a, "greedy"_a, "chance"_a, "normal"_a, release());
    module.def(
        "evolution_remember",
        [](const Struct& state, int64_t n, int64_t capacity, Address fitness, Address keys) {
            cpu::evolution_remember(state, n, capacity, at<const double>(fitness),
                                    at<const double>(keys));
        },
        "state"_a, by_name, "n"_a, "capacity"_a, "fitness"_a, "keys"_a, release());
    module.def(
        "evolution_take",
        [](const Struct& state, int64_t n, Address fitness, Address best, Address best_fitness) {
            cpu::evolution_take(state, n, at<const double>(fitness), at<int64_t>(best),
                                at<double>(best_fitness));
        },
        "state"_a, by_name, "n"_a, "fitness"_a, "best"_a, "best_fitness"_a, release());
    module.def("evolution_shrink", &cpu::evolution_shrink, "state"_a, by_name, "n"_a, "left"_a,
               "capacity"_a, release());
    module.def(
        "descent_moves",
        [](Address start, int64_t runs, int64_t moves, int64_t width, Address low, Address high,
           int64_t octaves, Address chance, Address candidates) {
            cpu::descent_moves(at<const int64_t>(start), runs, moves, width, at<const int64_t>(low),
                               at<const int64_t>(high), octaves, at<const double>(chance),
                               at<int64_t>(candidates));
        },
        by_name, "start"_a, "runs"_a, "moves"_a, "width"_a, "low"_a, "high"_a, "octaves"_a,
        "chance"_a, "candidates"_a, release());
    module.def(
        "descent_take",
        [](Address candidates, Address fitness, int64_t runs, int64_t moves, int64_t width,
           int64_t patience, Address best, Address best_fitness, Address idle) {
            return cpu::descent_take(at<const int64_t>(candidates), at<const double>(fitness), runs,
                                     moves, width, patience, at<int64_t>(best),
                                     at<double>(best_fitness), at<int64_t>(idle));
        },
        by_name, "candidates"_a, "fitness"_a, "runs"_a, "moves"_a, "width"_a, "patience"_a,
        "best"_a, "best_fitness"_a, "idle"_a, release());
}

#ifdef MDCP_WITH_CUDA
// A function of a problem that writes tables to an address, or nothing to 0.
template <class Problem>
auto tables_of(int64_t (*write)(const Problem&, int64_t*)) {
    return [write](const Problem& in, Address tables) { return write(in, at<int64_t>(tables)); };
}

void define_cuda_ops(py::module_& module) {
    module.def("cuda_device_count", &cuda::device_count, release());
    module.def("crowding_distance_cuda", &cuda::crowding_distance, release());
    module.def("crowding_distance_cuda_tables", tables_of(&cuda::crowding_distance_tables),
               release());
    module.def("crowding_distance_cuda_workspace", &cuda::crowding_distance_workspace, release());
    module.def("evaluate_population_cuda", &cuda::evaluate_population, release());
    module.def("evaluate_population_cuda_workspace", &cuda::evaluate_population_workspace,
               release());
    module.def("ward_cuda", &cuda::ward, release());
    module.def("ward_cuda_tables", tables_of(&cuda::ward_tables), release());
    module.def("ward_cuda_workspace", &cuda::ward_workspace, release());
    module.def("kmeans_cuda", &cuda::kmeans, release());
    module.def("kmeans_cuda_tables", tables_of(&cuda::kmeans_tables), release());
    module.def("kmeans_cuda_workspace", &cuda::kmeans_workspace, release());
}
#else
void define_cuda_ops(py::module_& module) {
    module.def("cuda_device_count", [] { return 0; });
}
#endif

}  // namespace

PYBIND11_MODULE(_native, module) {
    declare_problems(module);
    declare_results(module);
    declare_executions(module);
    define_cpu_ops(module);
    define_evolution(module);
    define_cuda_ops(module);
#ifdef MDCP_WITH_CUDA
    module.attr("with_cuda") = true;
#else
    module.attr("with_cuda") = false;
#endif
}
