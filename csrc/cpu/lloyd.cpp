#include "cpu/lloyd.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/dimensions.h"
#include "cpu/lanes.h"
#include "cpu/simd.h"
#include "cpu/spatial.h"
#include "numerics/distance.h"
#include "numerics/fixed.h"

namespace mdcp::cpu {

constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr int32_t kBlockBit[kBlock] = {1,       1 << 1,  1 << 2,  1 << 3, 1 << 4,  1 << 5,
                                       1 << 6,  1 << 7,  1 << 8,  1 << 9, 1 << 10, 1 << 11,
                                       1 << 12, 1 << 13, 1 << 14, 1 << 15};

Cloud::Cloud(const float* points, int64_t count, int32_t given)
    : count(count),
      slots((count + kBlock - 1) / kBlock * kBlock),
      blocks(slots / kBlock),
      boxes((blocks + kBlock - 1) / kBlock * kBlock),
      given(given),
      dimensions(kernel_dimensions(given)),
      point_of(spatial_order(points, count, given)),
      slot_of(count),
      coordinates(dimensions * slots, 0),
      fixed(slots * given),
      low(dimensions * boxes, kInfinite),
      high(dimensions * boxes, kInfinite) {
    float largest = 0;
    for (int64_t i = 0; i < count * given; ++i) largest = std::max(largest, std::fabs(points[i]));
    scale = unit_scale(largest);
    for (int64_t slot = 0; slot < count; ++slot) {
        slot_of[point_of[slot]] = static_cast<int32_t>(slot);
    }
    if (count > 0) point_of.resize(slots, point_of.back());
    for (int64_t slot = 0; slot < slots; ++slot) {
        for (int d = 0; d < given; ++d) {
            const double value = points[point_of[slot] * int64_t{given} + d];
            const float scaled = static_cast<float>(value * scale);
            coordinates[place(slot, d, dimensions)] = scaled;
            fixed[slot * given + d] = to_fixed(scaled);
        }
    }
    for (int d = 0; d < dimensions; ++d) {
        for (int64_t block = 0; block < blocks; ++block) {
            const float* start = coordinates.data() + place(block * kBlock, d, dimensions);
            const auto [least, most] = std::minmax_element(start, start + kBlock);
            low[d * boxes + block] = *least;
            high[d * boxes + block] = *most;
        }
    }
}

// Every test by a box is one that no rounding can falsify (numerics/distance.h), so the answer is
// that of comparing every point with every centre.
template <int kDimensions>
struct Assign {
    struct View {
        int64_t blocks, boxes, k;
        const float *coordinates, *low, *high, *centers;
        const int32_t* is_moved;
        int32_t* label;
        float *distance, *reach;
    };

    // Sixteen points: their nearest centres so far.
    struct Best {
        float distance[kBlock];
        int32_t label[kBlock];
    };

    static MDCP_INLINE void load(const View& view, int64_t block, Best& best) {
        const int64_t start = block * kBlock;
        MDCP_LANES
        for (int lane = 0; lane < kBlock; ++lane) {
            best.distance[lane] = view.distance[start + lane];
            best.label[lane] = view.label[start + lane];
        }
    }

    static MDCP_INLINE void store(const View& view, int64_t block, const Best& best) {
        const int64_t start = block * kBlock;
        MDCP_LANES
        for (int lane = 0; lane < kBlock; ++lane) {
            view.distance[start + lane] = best.distance[lane];
            view.label[start + lane] = best.label[lane];
        }
        float most[kBlock / 2];
        MDCP_LANES
        for (int lane = 0; lane < kBlock / 2; ++lane) {
            const float a = best.distance[lane], b = best.distance[lane + kBlock / 2];
            most[lane] = a > b ? a : b;
        }
        float reach = most[0];
        for (int lane = 1; lane < kBlock / 2; ++lane)
            reach = reach > most[lane] ? reach : most[lane];
        view.reach[block] = reach;
    }

    // True if the centre is now the nearest of any of the sixteen.
    static MDCP_INLINE bool offer(const View& view, int64_t block, int32_t center, Best& best) {
        const float* coordinates = view.coordinates + place(block * kBlock, 0, kDimensions);
        const float* at = view.centers + place(center, 0, kDimensions);
        int32_t any = 0;
        MDCP_LANES
        for (int lane = 0; lane < kBlock; ++lane) {
            const float distance =
                squared_distance<kDimensions>(coordinates + lane, kBlock, at, kBlock);
            const bool closer = nearer(distance, center, best.distance[lane], best.label[lane]);
            best.distance[lane] = closer ? distance : best.distance[lane];
            best.label[lane] = closer ? center : best.label[lane];
            any |= closer ? 1 : 0;
        }
        return any != 0;
    }

    // Offers all unmoved centres to the points marked in `lanes`.
    static MDCP_INLINE void offer_unmoved(const View& view, int64_t block, int32_t lanes,
                                          Best& best) {
        float low[kDimensions], high[kDimensions], reach = 0;
        for (int d = 0; d < kDimensions; ++d) {
            low[d] = kInfinite;
            high[d] = -kInfinite;
        }
        for (int32_t rest = lanes; rest != 0; rest &= rest - 1) {
            const int lane = __builtin_ctz(rest);
            reach = reach > best.distance[lane] ? reach : best.distance[lane];
            for (int d = 0; d < kDimensions; ++d) {
                const float value = view.coordinates[place(block * kBlock + lane, d, kDimensions)];
                low[d] = low[d] < value ? low[d] : value;
                high[d] = high[d] > value ? high[d] : value;
            }
        }
        for (int64_t start = 0; start < view.k; start += kBlock) {
            int32_t within[kBlock];
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) {
                const float bound = squared_distance_to_box<kDimensions>(
                    view.centers + start * kDimensions + lane, kBlock, low, high, 1);
                const bool wanted = (bound <= reach) & (view.is_moved[start + lane] == 0);
                within[lane] = wanted ? kBlockBit[lane] : 0;
            }
            int32_t hits = 0;
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) hits |= within[lane];
            for (; hits != 0; hits &= hits - 1) {
                offer(view, block, static_cast<int32_t>(start) + __builtin_ctz(hits), best);
            }
        }
    }

    // Points whose own centre moved: the new distance. Where it grew, an unmoved centre may be the
    // nearest now; where not, none can be, for it was not before.
    static MDCP_INLINE void follow_own_centers(const View& view, bool all_moved) {
        for (int64_t block = 0; block < view.blocks; ++block) {
            const int64_t start = block * kBlock;
            int32_t moved[kBlock];
            int32_t any = 0;
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) {
                moved[lane] = view.is_moved[view.label[start + lane]];
                any |= moved[lane];
            }
            if (any == 0) continue;
            Best best;
            load(view, block, best);
            int32_t lost[kBlock];
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) {
                const float distance = squared_distance<kDimensions>(
                    view.coordinates + start * kDimensions + lane, kBlock,
                    view.centers + place(view.label[start + lane], 0, kDimensions), kBlock);
                const bool farther = (moved[lane] != 0) & (distance > best.distance[lane]);
                lost[lane] = farther ? kBlockBit[lane] : 0;
                best.distance[lane] = moved[lane] != 0 ? distance : best.distance[lane];
            }
            int32_t lanes = 0;
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) lanes |= lost[lane];
            if (lanes != 0 && !all_moved) offer_unmoved(view, block, lanes, best);
            store(view, block, best);
        }
    }

    static MDCP_INLINE void offer_moved(const View& view, int32_t center) {
        const float* at = view.centers + place(center, 0, kDimensions);
        for (int64_t start = 0; start < view.blocks; start += kBlock) {
            int32_t within[kBlock];
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) {
                const float bound = squared_distance_to_box<kDimensions>(
                    at, kBlock, view.low + start + lane, view.high + start + lane, view.boxes);
                within[lane] = bound <= view.reach[start + lane] ? kBlockBit[lane] : 0;
            }
            int32_t hits = 0;
            MDCP_LANES
            for (int lane = 0; lane < kBlock; ++lane) hits |= within[lane];
            for (; hits != 0; hits &= hits - 1) {
                const int64_t block = start + __builtin_ctz(hits);
                Best best;
                load(view, block, best);
                if (offer(view, block, center, best)) store(view, block, best);
            }
        }
    }

    static MDCP_INLINE void run(const Cloud* cloud, Clusters* clusters) {
        const View view{cloud->blocks,
                        cloud->boxes,
                        clusters->k_,
                        cloud->coordinates.data(),
                        cloud->low.data(),
                        cloud->high.data(),
                        clusters->centers_.data(),
                        clusters->is_moved_.data(),
                        clusters->label_.data(),
                        clusters->distance_.data(),
                        clusters->reach_.data()};
        const int32_t* moved = clusters->moved_.data();
        const int64_t count = static_cast<int64_t>(clusters->moved_.size());
        follow_own_centers(view, count == view.k);
        for (int64_t i = 0; i < count; ++i) offer_moved(view, moved[i]);
    }
};

Clusters::Clusters(const Cloud& cloud, int64_t capacity, int simd)
    : cloud_(cloud),
      simd_(simd),
      room_((capacity + kBlock - 1) / kBlock * kBlock),
      centers_(cloud.dimensions * room_, kInfinite),
      label_(cloud.slots, 0),
      distance_(cloud.slots, kInfinite),
      reach_(cloud.boxes, -1),
      accounted_(cloud.slots, -1),
      sum_(capacity * cloud.given, 0),
      size_(capacity, 0),
      is_moved_(room_, 0),
      is_touched_(room_, 0) {}

void Clusters::grow(int64_t k) {
    k_ = k;
}

void Clusters::set_center(int64_t cluster, const float* scaled) {
    for (int d = 0; d < cloud_.dimensions; ++d) {
        centers_[place(cluster, d, cloud_.dimensions)] = d < cloud_.given ? scaled[d] : 0;
    }
    mark_moved(static_cast<int32_t>(cluster));
}

void Clusters::mark_moved(int32_t cluster) {
    if (is_moved_[cluster]) return;
    is_moved_[cluster] = 1;
    moved_.push_back(cluster);
}

void Clusters::touch(int32_t cluster) {
    if (is_touched_[cluster]) return;
    is_touched_[cluster] = 1;
    touched_.push_back(cluster);
}

void Clusters::assign() {
    dispatch_dimensions<Assign>(cloud_.dimensions, simd_, &cloud_, this);
    for (int32_t cluster : moved_) is_moved_[cluster] = 0;
    moved_.clear();
    account();
}

void Clusters::account() {
    for (int64_t slot = 0; slot < cloud_.count; ++slot) {
        if (label_[slot] != accounted_[slot]) move_point(slot, label_[slot]);
    }
}

void Clusters::move_point(int64_t slot, int32_t cluster) {
    const int64_t* point = cloud_.fixed.data() + slot * cloud_.given;
    const int32_t from = accounted_[slot];
    if (from >= 0) {
        for (int d = 0; d < cloud_.given; ++d) sum_[from * int64_t{cloud_.given} + d] -= point[d];
        --size_[from];
        touch(from);
    }
    for (int d = 0; d < cloud_.given; ++d) sum_[cluster * int64_t{cloud_.given} + d] += point[d];
    ++size_[cluster];
    touch(cluster);
    accounted_[slot] = cluster;
}

bool Clusters::recenter() {
    relocate_empty();
    for (int32_t cluster : touched_) {
        is_touched_[cluster] = 0;
        if (size_[cluster] == 0) continue;
        bool same = true;
        for (int d = 0; d < cloud_.given; ++d) {
            const float mean =
                fixed_mean(sum_[cluster * int64_t{cloud_.given} + d], size_[cluster]);
            float& center = centers_[place(cluster, d, cloud_.dimensions)];
            same &= mean == center;
            center = mean;
        }
        if (!same) mark_moved(cluster);
    }
    touched_.clear();
    return !moved_.empty();
}

// As scikit-learn does: every empty cluster gets the point farthest from its centre among those not
// yet taken. A point that is its cluster's only one stays, or that cluster were the next empty one.
void Clusters::relocate_empty() {
    std::vector<int32_t> empty;
    for (int32_t cluster = 0; cluster < k_; ++cluster) {
        if (size_[cluster] == 0) empty.push_back(cluster);
    }
    if (empty.empty()) return;
    std::vector<int32_t> order;
    for (int64_t slot = 0; slot < cloud_.count; ++slot) {
        if (distance_[slot] > 0) order.push_back(static_cast<int32_t>(slot));
    }
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        if (distance_[a] != distance_[b]) return distance_[a] > distance_[b];
        return cloud_.point_of[a] < cloud_.point_of[b];
    });
    size_t next = 0;
    for (int32_t slot : order) {
        if (next == empty.size()) break;
        if (size_[label_[slot]] < 2) continue;
        const int32_t cluster = empty[next++];
        move_point(slot, cluster);
        label_[slot] = cluster;
        distance_[slot] = -1;  // whatever it will be, it grows: the point looks at all centres
        mark_moved(cluster);
    }
}

void Clusters::start_from(const Clusters& seeds) {
    k_ = seeds.k_;
    // What stands behind the last centre is infinite in both.
    const int64_t filled = (k_ + kBlock - 1) / kBlock * kBlock * cloud_.dimensions;
    std::fill(std::copy_n(seeds.centers_.begin(), filled, centers_.begin()), centers_.end(),
              kInfinite);
    label_ = seeds.label_;
    distance_ = seeds.distance_;
    reach_ = seeds.reach_;
    accounted_ = seeds.accounted_;
    std::copy_n(seeds.sum_.begin(), k_ * cloud_.given, sum_.begin());
    std::copy_n(seeds.size_.begin(), k_, size_.begin());
    for (int32_t cluster : moved_) is_moved_[cluster] = 0;
    moved_.clear();
    for (int32_t cluster : touched_) is_touched_[cluster] = 0;
    touched_.clear();
    for (int32_t cluster = 0; cluster < k_; ++cluster) touch(cluster);
}

}  // namespace mdcp::cpu
