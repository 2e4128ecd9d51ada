// k-means for many jobs over many problems: the jobs of one problem, by ascending k, share its
// spatial order, its hierarchy or seeds, and the first assignment, of which only what one more
// centre changes is computed anew.
#include "ops/kmeans.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/cuts.h"
#include "cpu/hierarchy.h"
#include "cpu/lloyd.h"
#include "cpu/parallel.h"
#include "cpu/seeding.h"
#include "cpu/trimmed.h"
#include "numerics/distance.h"
#include "numerics/fixed.h"
#include "numerics/seeding.h"

namespace mdcp::cpu {
namespace {

struct Problem {
    std::vector<int64_t> jobs;  // by ascending k
    std::unique_ptr<Cloud> cloud;
    std::unique_ptr<Cuts> cuts;  // Ward
    std::vector<int32_t> seeds;  // k-means++: points
};

class Batch {
  public:
    Batch(const KMeansProblem& in, const KMeansResult& out, Execution execution)
        : in_(in), out_(out), execution_(execution), problems_(in.problems), row_(in.jobs + 1, 0) {
        for (int64_t job = 0; job < in.jobs; ++job) {
            problems_[in.problem[job]].jobs.push_back(job);
            row_[job + 1] = row_[job] + in.k[job];
        }
        for (Problem& problem : problems_) {
            std::stable_sort(problem.jobs.begin(), problem.jobs.end(),
                             [&](int64_t a, int64_t b) { return in_.k[a] < in_.k[b]; });
        }
    }

    void run() {
        std::vector<int64_t> wanted;
        for (int64_t p = 0; p < in_.problems; ++p) {
            if (!problems_[p].jobs.empty()) wanted.push_back(p);
        }
        std::stable_sort(wanted.begin(), wanted.end(),
                         [&](int64_t a, int64_t b) { return count(a) > count(b); });
        const int64_t size = std::max<int64_t>(wanted.size(), 1);
        const int inner = std::max<int>(1, static_cast<int>(execution_.threads / size));
        parallel_for(wanted.size(), execution_.threads,
                     [&](int, int64_t i) { prepare(wanted[i], inner); });

        const std::vector<Share> shares = divide(wanted);
        parallel_for(shares.size(), execution_.threads, [&](int, int64_t i) { serve(shares[i]); });
    }

  private:
    // Some of a problem's jobs, for one thread.
    struct Share {
        int64_t problem, begin, end;  // positions in its list of jobs
        double work;
    };

    int64_t count(int64_t p) const { return in_.offsets[p + 1] - in_.offsets[p]; }

    void prepare(int64_t p, int threads) {
        Problem& problem = problems_[p];
        const float* given = in_.points + in_.offsets[p] * in_.dimensions;
        const Trimmed own(given, count(p), in_.dimensions, used(p));
        problem.cloud = std::make_unique<Cloud>(own.points, count(p), own.dimensions);
        if (in_.init == KMeansProblem::kWard) {
            problem.cuts = std::make_unique<Cuts>(
                *problem.cloud,
                ward_hierarchy(own.points, count(p), own.dimensions, problem.cloud->point_of,
                               {threads, execution_.simd}));
        } else if (in_.init == KMeansProblem::kPlusPlus) {
            problem.seeds = kmeans_plus_plus(*problem.cloud, in_.k[problem.jobs.back()], in_.seed,
                                             execution_.simd);
        }
    }

    // Dimensions without those that are zero for all points, and for given centres.
    int32_t used(int64_t p) const {
        int32_t most =
            used_dimensions(in_.points + in_.offsets[p] * in_.dimensions, count(p), in_.dimensions);
        if (in_.init != KMeansProblem::kGiven) return most;
        for (int64_t job : problems_[p].jobs) {
            most = std::max(most, used_dimensions(in_.centers + row_[job] * in_.dimensions,
                                                  in_.k[job], in_.dimensions));
        }
        return most;
    }

    // Shares of about equal work, the largest first.
    std::vector<Share> divide(const std::vector<int64_t>& wanted) const {
        double total = 0;
        const auto work = [&](int64_t p, int64_t job) {
            return static_cast<double>(count(p)) * (16.0 + std::sqrt(double(in_.k[job])));
        };
        for (int64_t p : wanted) {
            for (int64_t job : problems_[p].jobs) total += work(p, job);
        }
        const double most = execution_.threads == 1 ? total : total / (4.0 * execution_.threads);
        std::vector<Share> shares;
        for (int64_t p : wanted) {
            const int64_t jobs = static_cast<int64_t>(problems_[p].jobs.size());
            Share share{p, 0, 0, 0};
            for (int64_t i = 0; i < jobs; ++i) {
                share.work += work(p, problems_[p].jobs[i]);
                share.end = i + 1;
                if (share.work >= most || i + 1 == jobs) {
                    shares.push_back(share);
                    share = {p, i + 1, i + 1, 0};
                }
            }
        }
        std::stable_sort(shares.begin(), shares.end(),
                         [](const Share& a, const Share& b) { return a.work > b.work; });
        return shares;
    }

    void serve(const Share& share) {
        const Problem& problem = problems_[share.problem];
        if (in_.init == KMeansProblem::kGiven) {
            for (int64_t i = share.begin; i < share.end; ++i) {
                const int64_t job = problem.jobs[i];
                Clusters clusters(*problem.cloud, in_.k[job], execution_.simd);
                give_centers(problem, job, clusters);
                finish(problem, job, clusters);
            }
            return;
        }
        const int64_t capacity = in_.k[problem.jobs[share.end - 1]];
        Clusters seeds(*problem.cloud, capacity, execution_.simd);
        Clusters clusters(*problem.cloud, capacity, execution_.simd);
        for (int64_t i = share.begin; i < share.end; ++i) {
            const int64_t job = problem.jobs[i];
            advance(problem, in_.k[job], seeds);
            clusters.start_from(seeds);
            finish(problem, job, clusters);
        }
    }

    void advance(const Problem& problem, int64_t k, Clusters& seeds) const {
        const int64_t before = seeds.k();
        if (before == k) return;
        if (problem.cuts) {
            problem.cuts->advance(k, seeds);
        } else {
            seeds.grow(k);
            for (int64_t cluster = before; cluster < k; ++cluster) {
                float center[kMaxDimensions];
                const int32_t slot = problem.cloud->slot_of[problem.seeds[cluster]];
                for (int d = 0; d < problem.cloud->given; ++d) {
                    center[d] =
                        problem.cloud->coordinates[place(slot, d, problem.cloud->dimensions)];
                }
                seeds.set_center(cluster, center);
            }
        }
        seeds.assign();
    }

    void give_centers(const Problem& problem, int64_t job, Clusters& clusters) const {
        clusters.grow(in_.k[job]);
        for (int64_t cluster = 0; cluster < in_.k[job]; ++cluster) {
            float center[kMaxDimensions];
            for (int d = 0; d < problem.cloud->given; ++d) {
                const double value =
                    in_.centers[(row_[job] + cluster) * in_.dimensions + d] * problem.cloud->scale;
                center[d] = static_cast<float>(std::clamp(value, -kFarAway, kFarAway));
            }
            clusters.set_center(cluster, center);
        }
        clusters.assign();
    }

    void finish(const Problem& problem, int64_t job, Clusters& clusters) const {
        const Cloud& cloud = *problem.cloud;
        int64_t iterations = 0;
        std::vector<float> before;  // see kCycleStart
        bool cycles = false;
        while (iterations < in_.max_iter && !cycles) {
            ++iterations;
            if (!clusters.recenter()) break;
            if (iterations >= kCycleStart) {
                cycles = were_there(clusters, cloud.given, iterations, before);
            }
            clusters.assign();
        }
        float* centers = out_.centers + row_[job] * in_.dimensions;
        for (int64_t cluster = 0; cluster < in_.k[job]; ++cluster) {
            float* center = centers + cluster * in_.dimensions;
            for (int d = 0; d < cloud.given; ++d) {
                center[d] = static_cast<float>(clusters.center(cluster, d) / cloud.scale);
            }
            std::fill(center + cloud.given, center + in_.dimensions, 0.0f);
        }
        int64_t* labels = out_.labels + out_.offsets[job];
        for (int64_t slot = 0; slot < cloud.count; ++slot) {
            labels[cloud.point_of[slot]] = clusters.label(slot);
        }
        out_.iterations[job] = iterations;
        out_.inertia[job] = inertia(in_.problem[job], labels, centers);
    }

    // Whether all centres are where they were `before`, which is replaced at every power of two.
    static bool were_there(const Clusters& clusters, int32_t dimensions, int64_t iteration,
                           std::vector<float>& before) {
        const bool stores = (iteration & (iteration - 1)) == 0;
        before.resize(clusters.k() * dimensions);
        for (int64_t i = 0; i < clusters.k() * dimensions; ++i) {
            const float now = clusters.center(i / dimensions, static_cast<int32_t>(i % dimensions));
            if (stores) {
                before[i] = now;
            } else if (before[i] != now) {
                return false;
            }
        }
        return !stores;
    }

    double inertia(int64_t p, const int64_t* labels, const float* centers) const {
        const float* points = in_.points + in_.offsets[p] * in_.dimensions;
        double lanes[kSumLanes] = {};
        for (int64_t i = 0; i < count(p); ++i) {
            const float* point = points + i * in_.dimensions;
            const float* center = centers + labels[i] * in_.dimensions;
            double distance = 0;
            for (int d = 0; d < in_.dimensions; ++d) {
                const double difference =
                    static_cast<double>(point[d]) - static_cast<double>(center[d]);
                distance += difference * difference;
            }
            lanes[i % kSumLanes] += distance;
        }
        return fold_lanes(lanes);
    }

    const KMeansProblem& in_;
    const KMeansResult& out_;
    Execution execution_;
    std::vector<Problem> problems_;
    std::vector<int64_t> row_;  // [jobs + 1] where the centres of each job stand
};

}  // namespace

void kmeans(const KMeansProblem& in, const KMeansResult& out, Execution execution) {
    Batch(in, out, execution).run();
}

}  // namespace mdcp::cpu
