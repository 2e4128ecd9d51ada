// Philox-4x32-10 (Salmon, Moraes, Dror, Shaw 2011): random numbers as a function of a counter.
#pragma once

#include <cstdint>

#include "numerics/device.h"

namespace mdcp {

struct Philox {
    uint32_t word[4];
};

MDCP_BOTH Philox philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53u} * c0, product1 = uint64_t{0xCD9E8D57u} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
        c3 = static_cast<uint32_t>(product0);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// A whole number below `bound`, at most 2^53: the high half of the product with 64 random bits.
MDCP_BOTH uint64_t below(const Philox& random, uint64_t bound) {
    const uint64_t high = bound >> 32, low = bound & 0xffffffffu;
    const uint64_t top = random.word[1], bottom = random.word[0];
    const uint64_t middle = top * low + ((bottom * low) >> 32);
    const uint64_t other = bottom * high + (middle & 0xffffffffu);
    return top * high + (middle >> 32) + (other >> 32);
}

}  // namespace mdcp
