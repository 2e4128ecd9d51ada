// Clusters from a hierarchy of Ward's.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/hierarchy.h"
#include "cpu/lloyd.h"

namespace mdcp::cpu {

// Cuts of Ward's hierarchy for ascending k. Clusters are numbered in the order in which the
// hierarchy divides them from the top: the part with the smallest point keeps the number, the other
// gets the next new one.
class Cuts {
  public:
    Cuts(const Cloud& cloud, std::vector<Merge> merges);

    // The cut into so many clusters.
    void advance(int64_t k, Clusters& clusters) const;

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

}  // namespace mdcp::cpu
