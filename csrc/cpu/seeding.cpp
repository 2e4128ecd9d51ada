#include "cpu/seeding.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/dimensions.h"
#include "cpu/lanes.h"
#include "numerics/distance.h"
#include "numerics/fixed.h"
#include "numerics/philox.h"

namespace mdcp {
namespace {

// Everything stands in the order of the points, which the draws refer to.
struct Draws {
    int64_t padded;            // points, rounded up to a multiple of 16; the rest have no weight
    const float* coordinates;  // [dimensions, padded]
    const float* distance;     // [padded] to the nearest seed so far
    double scale;              // of fixed_weight
};

// One candidate: the distances if it were a seed, and their weights.
template <int kDimensions>
struct Consider {
    static MDCP_INLINE void run(const Draws* draws, int64_t candidate, float* distance,
                                double* block_weight) {
        const Draws view = *draws;
        for (int64_t start = 0; start < view.padded; start += kBlock) {
            float nearest[kBlock];
            double weight[kBlock];
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) {
                const float own =
                    squared_distance<kDimensions>(view.coordinates + start + lane, view.padded,
                                                  view.coordinates + candidate, view.padded);
                const float before = view.distance[start + lane];
                nearest[lane] = own < before ? own : before;
            }
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) distance[start + lane] = nearest[lane];
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) {
                weight[lane] = fixed_weight(nearest[lane], view.scale);
            }
            double sum = 0;  // of whole numbers: exact in any order
            for (int lane = 0; lane < kBlock; ++lane) sum += weight[lane];
            block_weight[start / kBlock] = sum;
        }
    }
};

class Seeder {
  public:
    Seeder(const Cloud& cloud, uint64_t seed, int simd)
        : cloud_(cloud),
          seed_(seed),
          simd_(simd),
          padded_(cloud.slots),
          coordinates_(cloud.dimensions * padded_, 0),
          distance_(padded_, 0),
          tried_(padded_),
          best_(padded_),
          weight_(padded_ / kBlock),
          tried_weight_(padded_ / kBlock),
          best_weight_(padded_ / kBlock),
          chosen_(cloud.count, false) {
        for (int64_t point = 0; point < cloud.count; ++point) {
            for (int d = 0; d < cloud.dimensions; ++d) {
                coordinates_[d * padded_ + point] =
                    cloud.coordinates[d * cloud.slots + cloud.slot_of[point]];
            }
        }
    }

    std::vector<int32_t> run(int64_t k) {
        const int64_t count = cloud_.count;
        const int trials = 2 + static_cast<int>(std::log(static_cast<double>(count)));
        add_first(static_cast<int32_t>(below(philox(0, 0, 0, 0, seed_), count)));
        while (static_cast<int64_t>(seeds_.size()) < k) {
            const float farthest = *std::max_element(distance_.begin(), distance_.begin() + count);
            if (farthest == 0) {
                add_duplicate();
                continue;
            }
            weigh(weight_scale(farthest, count));
            const uint32_t step = static_cast<uint32_t>(seeds_.size());
            int32_t best = -1;
            double least = std::numeric_limits<double>::infinity();
            for (int trial = 0; trial < trials; ++trial) {
                const Philox random = philox(step, static_cast<uint32_t>(trial), 0, 0, seed_);
                const int32_t candidate = draw(below(random, static_cast<uint64_t>(total_)));
                consider(candidate, tried_.data(), tried_weight_.data());
                double left = 0;
                for (double weight : tried_weight_) left += weight;
                if (left < least) {
                    least = left;
                    best = candidate;
                    best_.swap(tried_);
                }
            }
            seeds_.push_back(best);
            chosen_[best] = true;
            distance_.swap(best_);
        }
        return seeds_;
    }

  private:
    void add_first(int32_t point) {
        std::fill_n(distance_.begin(), cloud_.count, std::numeric_limits<float>::max());
        scale_ = 0;
        consider(point, best_.data(), best_weight_.data());
        distance_.swap(best_);
        seeds_.push_back(point);
        chosen_[point] = true;
    }

    // All points coincide with seeds: the smallest index that is none yet.
    void add_duplicate() {
        while (chosen_[next_duplicate_]) ++next_duplicate_;
        chosen_[next_duplicate_] = true;
        seeds_.push_back(next_duplicate_);
    }

    void weigh(double scale) {
        scale_ = scale;
        total_ = 0;
        for (int64_t start = 0; start < padded_; start += kBlock) {
            double sum = 0;
            for (int64_t i = start; i < start + kBlock; ++i)
                sum += fixed_weight(distance_[i], scale);
            weight_[start / kBlock] = sum;
            total_ += sum;
        }
    }

    void consider(int32_t candidate, float* distance, double* block_weight) {
        const Draws draws{padded_, coordinates_.data(), distance_.data(), scale_};
        dispatch_dimensions<Consider>(cloud_.dimensions, simd_, &draws, int64_t{candidate},
                                      distance, block_weight);
    }

    // The first point at which the sum of the weights from the start exceeds `ticket`.
    int32_t draw(uint64_t ticket) const {
        double left = static_cast<double>(ticket);
        int64_t block = 0;
        while (left >= weight_[block]) left -= weight_[block++];
        int64_t point = block * kBlock;
        for (;; ++point) {
            const double weight = fixed_weight(distance_[point], scale_);
            if (left < weight) return static_cast<int32_t>(point);
            left -= weight;
        }
    }

    const Cloud& cloud_;
    uint64_t seed_;
    int simd_;
    int64_t padded_;
    std::vector<float> coordinates_;   // [dimensions, padded_]
    std::vector<float> distance_;      // [padded_] to the nearest seed; 0 beyond the last point
    std::vector<float> tried_, best_;  // the same with one candidate more
    std::vector<double> weight_, tried_weight_, best_weight_;  // [padded_ / 16] sums of weights
    double scale_ = 0;
    double total_ = 0;
    std::vector<int32_t> seeds_;
    std::vector<bool> chosen_;  // [points]
    int32_t next_duplicate_ = 0;
};

}  // namespace

std::vector<int32_t> kmeans_plus_plus(const Cloud& cloud, int64_t k, uint64_t seed, int simd) {
    return Seeder(cloud, seed, simd).run(k);
}

}  // namespace mdcp
