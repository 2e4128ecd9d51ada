// Lloyd's iteration on one problem.
#pragma once

#include <cstdint>
#include <vector>

namespace mdcp::cpu {

constexpr int kBlock = 16;  // points of a block, and lanes of a vector of floats

// Where coordinate d of a point or a centre stands: those of sixteen are one run of memory. Whole
// dimensions one after the other would often be a large power of two apart, which caches map to the
// same place.
inline int64_t place(int64_t at, int d, int dimensions) {
    const int64_t lane = at & (kBlock - 1);
    return (at - lane) * dimensions + d * kBlock + lane;
}

// A problem's points, scaled by a power of two into [-1, 1] and laid out in spatial order by blocks
// of 16 with a bounding box each. The last block is filled up with copies of its last point.
struct Cloud {
    Cloud(const float* points,  // [count, given]
          int64_t count, int32_t given);

    int64_t count;       // points
    int64_t slots;       // points and copies
    int64_t blocks;      // slots / 16
    int64_t boxes;       // blocks, rounded up to a multiple of 16: the others are infinitely far
    int32_t given;       // dimensions of the points
    int32_t dimensions;  // of the kernel: zeros fill the rest
    double scale;
    std::vector<int32_t> point_of;   // [slots]
    std::vector<int32_t> slot_of;    // [count]
    std::vector<float> coordinates;  // [place(slot)]
    std::vector<int64_t> fixed;      // [slots, given], see numerics/fixed.h
    std::vector<float> low, high;    // [dimensions, boxes]
};

// Centres, the nearest of them for every point, and the sums of the points of each.
class Clusters {
  public:
    // Room for up to `capacity` centres. No centre is set, all points are outside of all clusters.
    Clusters(const Cloud& cloud, int64_t capacity, int simd);

    // Sets the number of centres. New ones are to be set by set_center.
    void grow(int64_t k);

    // Moves a centre; takes effect with the next assign().
    void set_center(int64_t cluster, const float* scaled);  // [given]

    // Puts a point (slot) into a cluster that need not be the nearest. Legal only if every centre
    // was set since the last assign(). Good guesses make it fast.
    void guess(int64_t slot, int32_t cluster) { label_[slot] = cluster; }

    // Finds every point's nearest centre, the smallest index among equals. Only what centres moved
    // since the last time can change is computed.
    void assign();

    // Moves the centres to the means of their points, and empty ones to the points that are
    // farthest from their centres. False if no centre moved.
    bool recenter();

    // Takes over everything, and forgets the mean of no cluster: recenter() will look at them all.
    void start_from(const Clusters& seeds);

    int64_t k() const { return k_; }
    int32_t label(int64_t slot) const { return label_[slot]; }
    float center(int64_t cluster, int32_t dimension) const {
        return centers_[place(cluster, dimension, cloud_.dimensions)];
    }

  private:
    template <int kDimensions>
    friend struct Assign;

    void account();
    void relocate_empty();
    void move_point(int64_t slot, int32_t cluster);
    void touch(int32_t cluster);
    void mark_moved(int32_t cluster);

    const Cloud& cloud_;
    int simd_;
    int64_t k_ = 0;
    int64_t room_;                    // capacity, rounded up to a multiple of 16
    std::vector<float> centers_;      // [place(cluster)], infinite where there is none
    std::vector<int32_t> label_;      // [slots]
    std::vector<float> distance_;     // [slots] squared, to the centre of the label
    std::vector<float> reach_;        // [boxes] the largest distance in the block
    std::vector<int32_t> accounted_;  // [slots] the cluster whose sum holds the point, or -1
    std::vector<int64_t> sum_;        // [capacity, given]
    std::vector<int64_t> size_;       // [capacity]
    std::vector<int32_t> moved_;      // centres moved since the last assign()
    std::vector<int32_t> is_moved_;   // [room_]
    std::vector<int32_t> touched_;    // clusters that won or lost a point since the last recenter()
    std::vector<int32_t> is_touched_;  // [room_]
};

}  // namespace mdcp::cpu
