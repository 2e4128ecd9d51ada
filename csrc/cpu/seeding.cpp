#include "cpu/seeding.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/dimensions.h"
#include "cpu/lanes.h"
#include "numerics/distance.h"
#include "numerics/fixed.h"
#include "numerics/philox.h"
#include "numerics/seeding.h"

namespace mdcp::cpu {
namespace {

constexpr int kRun = kBlock * kBlock;  // points whose weights are summed twice over, for the draws

// Squared distances to the nearest seed so far, in the spatial order of the points.
struct Field {
    int64_t blocks, boxes;
    const float* coordinates;  // [place(slot)]
    const float *low, *high;   // [dimensions, boxes]
    float* distance;           // [slots], 0 for the copies that fill the last block
    float* reach;              // [boxes] the largest distance in the block
    double scale;              // of fixed_weight
};

// A new seed concerns only the blocks that it may come nearer to than the seeds before.
template <int kDimensions>
struct Near {
    // Which of sixteen blocks those are, a bit for each.
    static MDCP_INLINE int32_t blocks(const Field& field, int64_t seed, int64_t start) {
        const float* at = field.coordinates + place(seed, 0, kDimensions);
        int32_t within[kBlock];
        MDCP_LANES
        for (int lane = 0; lane < kBlock; ++lane) {
            const float bound = squared_distance_to_box<kDimensions>(
                at, kBlock, field.low + start + lane, field.high + start + lane, field.boxes);
            within[lane] = bound < field.reach[start + lane] ? 1 << lane : 0;
        }
        int32_t hits = 0;
        MDCP_LANES
        for (int lane = 0; lane < kBlock; ++lane) hits |= within[lane];
        return hits;
    }

    static MDCP_INLINE void distances(const Field& field, int64_t seed, int64_t start,
                                      float* nearest) {
        const float* at = field.coordinates + place(seed, 0, kDimensions);
        const float* points = field.coordinates + start * kDimensions;
        MDCP_LANES
        for (int lane = 0; lane < kBlock; ++lane) {
            const float own = squared_distance<kDimensions>(points + lane, kBlock, at, kBlock);
            const float before = field.distance[start + lane];
            nearest[lane] = own < before ? own : before;
        }
    }
};

// How much weight a candidate would take away.
template <int kDimensions>
struct Gain {
    static MDCP_INLINE void run(const Field* field_pointer, int64_t candidate, double* gain) {
        const Field field = *field_pointer;
        double lanes[kBlock] = {};  // sums of whole numbers: exact in any order
        for (int64_t first = 0; first < field.blocks; first += kBlock) {
            int32_t hits = Near<kDimensions>::blocks(field, candidate, first);
            for (; hits != 0; hits &= hits - 1) {
                const int64_t start = (first + __builtin_ctz(hits)) * kBlock;
                float nearest[kBlock];
                Near<kDimensions>::distances(field, candidate, start, nearest);
                MDCP_LANES
                for (int lane = 0; lane < kBlock; ++lane) {
                    lanes[lane] += fixed_weight(field.distance[start + lane], field.scale) -
                                   fixed_weight(nearest[lane], field.scale);
                }
            }
        }
        double sum = 0;
        for (int lane = 0; lane < kBlock; ++lane) sum += lanes[lane];
        *gain = sum;
    }
};

// Takes a seed in, and lists the blocks it concerned.
template <int kDimensions>
struct Accept {
    static MDCP_INLINE void run(const Field* field_pointer, int64_t seed, int32_t* concerned,
                                int64_t* count) {
        const Field field = *field_pointer;
        for (int64_t first = 0; first < field.blocks; first += kBlock) {
            int32_t hits = Near<kDimensions>::blocks(field, seed, first);
            for (; hits != 0; hits &= hits - 1) {
                const int64_t block = first + __builtin_ctz(hits);
                float nearest[kBlock];
                Near<kDimensions>::distances(field, seed, block * kBlock, nearest);
                float reach = 0;
                for (int lane = 0; lane < kBlock; ++lane) {
                    field.distance[block * kBlock + lane] = nearest[lane];
                    reach = reach > nearest[lane] ? reach : nearest[lane];
                }
                field.reach[block] = reach;
                concerned[(*count)++] = static_cast<int32_t>(block);
            }
        }
    }
};

class Seeder {
  public:
    Seeder(const Cloud& cloud, uint64_t seed, int simd)
        : cloud_(cloud),
          seed_(seed),
          simd_(simd),
          distance_(cloud.slots, 0),
          reach_(cloud.boxes, 0),
          concerned_(cloud.blocks),
          weight_((cloud.count + kRun - 1) / kRun * kRun, 0),
          block_weight_(weight_.size() / kBlock, 0),
          run_weight_(weight_.size() / kRun, 0),
          chosen_(cloud.count, false) {
        std::fill_n(distance_.begin(), cloud.count, std::numeric_limits<float>::max());
        std::fill_n(reach_.begin(), cloud.blocks, std::numeric_limits<float>::max());
    }

    std::vector<int32_t> run(int64_t k) {
        const int trials = plus_plus_trials(cloud_.count);
        take(static_cast<int32_t>(below(philox(0, 0, 0, 0, seed_), cloud_.count)));
        while (static_cast<int64_t>(seeds_.size()) < k) {
            const float farthest = *std::max_element(reach_.begin(), reach_.end());
            if (farthest == 0) {
                take_duplicate();
                continue;
            }
            update_weights(weight_scale(farthest, cloud_.count));
            const uint64_t total =
                static_cast<uint64_t>(std::accumulate(run_weight_.begin(), run_weight_.end(), 0.0));
            const uint32_t step = static_cast<uint32_t>(seeds_.size());
            int32_t best = -1;
            double most = -1;
            for (int trial = 0; trial < trials; ++trial) {
                const Philox random = philox(step, static_cast<uint32_t>(trial), 0, 0, seed_);
                const int32_t candidate = draw(below(random, total));
                const Field now = field();
                double gain = 0;
                dispatch_dimensions<Gain>(cloud_.dimensions, simd_, &now,
                                          int64_t{cloud_.slot_of[candidate]}, &gain);
                if (gain > most) {
                    most = gain;
                    best = candidate;
                }
            }
            take(best);
        }
        return seeds_;
    }

  private:
    Field field() {
        return {cloud_.blocks,
                cloud_.boxes,
                cloud_.coordinates.data(),
                cloud_.low.data(),
                cloud_.high.data(),
                distance_.data(),
                reach_.data(),
                scale_};
    }

    void take(int32_t point) {
        seeds_.push_back(point);
        chosen_[point] = true;
        concerned_count_ = 0;
        const Field now = field();
        dispatch_dimensions<Accept>(cloud_.dimensions, simd_, &now, int64_t{cloud_.slot_of[point]},
                                    concerned_.data(), &concerned_count_);
    }

    // All points coincide with seeds: the smallest index that is none yet.
    void take_duplicate() {
        while (chosen_[next_duplicate_]) ++next_duplicate_;
        take(next_duplicate_);
    }

    void update_weights(double scale) {
        if (scale == scale_) {
            for (int64_t i = 0; i < concerned_count_; ++i) weigh_block(concerned_[i]);
            return;
        }
        scale_ = scale;
        for (int64_t block = 0; block < cloud_.blocks; ++block) weigh_block(block);
    }

    void weigh_block(int64_t block) {
        const int64_t end = std::min((block + 1) * kBlock, cloud_.count);
        for (int64_t slot = block * kBlock; slot < end; ++slot) {
            const int32_t point = cloud_.point_of[slot];
            const double weight = fixed_weight(distance_[slot], scale_);
            const double change = weight - weight_[point];
            weight_[point] = weight;
            block_weight_[point / kBlock] += change;
            run_weight_[point / kRun] += change;
        }
    }

    // The first point, by index, at which the sum of the weights from the start exceeds `ticket`.
    int32_t draw(uint64_t ticket) const {
        double left = static_cast<double>(ticket);
        int64_t at = 0;
        while (left >= run_weight_[at]) left -= run_weight_[at++];
        at *= kBlock;
        while (left >= block_weight_[at]) left -= block_weight_[at++];
        at *= kBlock;
        while (left >= weight_[at]) left -= weight_[at++];
        return static_cast<int32_t>(at);
    }

    const Cloud& cloud_;
    uint64_t seed_;
    int simd_;
    std::vector<float> distance_;     // [slots]
    std::vector<float> reach_;        // [boxes]
    std::vector<int32_t> concerned_;  // [blocks] those that the last seed concerned
    int64_t concerned_count_ = 0;
    double scale_ = 0;
    std::vector<double> weight_;        // [points], padded; whole numbers
    std::vector<double> block_weight_;  // their sums by 16
    std::vector<double> run_weight_;    // and by 256
    std::vector<int32_t> seeds_;
    std::vector<bool> chosen_;  // [points]
    int32_t next_duplicate_ = 0;
};

}  // namespace

std::vector<int32_t> kmeans_plus_plus(const Cloud& cloud, int64_t k, uint64_t seed, int simd) {
    return Seeder(cloud, seed, simd).run(k);
}

}  // namespace mdcp::cpu
