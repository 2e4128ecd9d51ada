#include "cpu/cuts.h"

#include <algorithm>
#include <utility>

#include "numerics/distance.h"
#include "numerics/fixed.h"

namespace mdcp::cpu {

Cuts::Cuts(const Cloud& cloud, std::vector<Merge> merges)
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
            sum_[node * given_ + d] =
                sum_[int64_t{merge.first} * given_ + d] + sum_[int64_t{merge.second} * given_ + d];
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

void Cuts::advance(int64_t k, Clusters& clusters) const {
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

}  // namespace mdcp::cpu
