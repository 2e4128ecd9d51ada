// k-means for many jobs over many problems: the jobs of one problem, by ascending k, share its
// spatial order, its hierarchy or seeds, and the first assignment, of which only what one more
// centre changes is computed anew.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/hierarchy.h"
#include "cpu/lloyd.h"
#include "cpu/parallel.h"
#include "cpu/seeding.h"
#include "cpu/trimmed.h"
#include "native.h"
#include "numerics/distance.h"
#include "numerics/fixed.h"

namespace mdcp {
namespace {

// Cuts of Ward's hierarchy for ascending k. Clusters are numbered in the order in which the
// hierarchy divides them from the top: the part with the smallest point keeps the number, the other
// gets the next new one.
class Cuts {
  public:
    Cuts(const Cloud& cloud, std::vector<Merge> merges)
        : given_(cloud.given), count_(cloud.count), merges_(std::move(merges)) {
        const int64_t nodes = 2 * count_ - 1;
        smallest_.resize(nodes);
        begin_.resize(nodes);
        leaves_.resize(count_);
        sum_.resize(nodes * given_);
        for (int64_t point = 0; point < count_; ++point) {
            smallest_[point] = static_cast<int32_t>(point);
            const int64_t* fixed = cloud.fixed.data() + cloud.slot_of[point] * int64_t{given_};
            std::copy_n(fixed, given_, sum_.begin() + point * given_);
        }
        for (int64_t row = 0; row < count_ - 1; ++row) {
            const Merge& merge = merges_[row];
            const int64_t node = count_ + row;
            smallest_[node] = std::min(smallest_[merge.first], smallest_[merge.second]);
            for (int d = 0; d < given_; ++d) {
                sum_[node * given_ + d] = sum_[int64_t{merge.first} * given_ + d] +
                                          sum_[int64_t{merge.second} * given_ + d];
            }
        }
        // Every node's points stand together in leaves_, from begin_ on.
        begin_[nodes - 1] = 0;
        for (int64_t row = count_ - 2; row >= 0; --row) {
            const int64_t node = count_ + row;
            begin_[kept(row)] = begin_[node];
            begin_[divided(row)] = begin_[node] + size(kept(row));
        }
        for (int64_t point = 0; point < count_; ++point) {
            leaves_[begin_[point]] = cloud.slot_of[point];
        }
    }

    // The cut into so many clusters.
    void advance(int64_t k, Clusters& clusters) const {
        const int64_t before = clusters.k();
        clusters.grow(k);
        std::vector<int32_t> node_of(k), label_of(2 * count_ - 1);
        node_of[0] = static_cast<int32_t>(2 * count_ - 2);
        label_of[2 * count_ - 2] = 0;
        std::vector<char> changed(k, 0);
        if (before == 0) changed[0] = 1;
        for (int64_t fresh = 1; fresh < k; ++fresh) {
            const int64_t row = count_ - 1 - fresh;
            const int32_t label = label_of[count_ + row];
            label_of[kept(row)] = label;
            label_of[divided(row)] = static_cast<int32_t>(fresh);
            node_of[label] = kept(row);
            node_of[fresh] = divided(row);
            if (fresh >= before) changed[label] = changed[fresh] = 1;
        }
        // From far away it is best to begin with the hierarchy's own clusters.
        const bool anew = 2 * before < k;
        for (int64_t cluster = 0; cluster < k; ++cluster) {
            const int32_t node = node_of[cluster];
            if (!anew && !changed[cluster]) continue;
            float center[kMaxDimensions];
            for (int d = 0; d < given_; ++d) {
                center[d] = fixed_mean(sum_[int64_t{node} * given_ + d], size(node));
            }
            clusters.set_center(cluster, center);
            if (!anew) continue;
            for (int64_t i = begin_[node]; i < begin_[node] + size(node); ++i) {
                clusters.guess(leaves_[i], static_cast<int32_t>(cluster));
            }
        }
    }

  private:
    int32_t kept(int64_t row) const {
        const Merge& merge = merges_[row];
        return smallest_[merge.first] < smallest_[merge.second] ? merge.first : merge.second;
    }
    int32_t divided(int64_t row) const {
        return merges_[row].first + merges_[row].second - kept(row);
    }
    int64_t size(int64_t node) const { return node < count_ ? 1 : merges_[node - count_].size; }

    int64_t given_, count_;
    std::vector<Merge> merges_;      // [count - 1]
    std::vector<int32_t> smallest_;  // [nodes] point
    std::vector<int32_t> begin_;     // [nodes]
    std::vector<int32_t> leaves_;    // [count] slots
    std::vector<int64_t> sum_;       // [nodes, given] fixed-point coordinates
};

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
        constexpr double kFarAway = 1152921504606846976.0;  // 2^60, whose square is still a float
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
        int64_t iterations = 0;
        while (iterations < in_.max_iter) {
            ++iterations;
            if (!clusters.recenter()) break;
            clusters.assign();
        }
        const Cloud& cloud = *problem.cloud;
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

}  // namespace mdcp
