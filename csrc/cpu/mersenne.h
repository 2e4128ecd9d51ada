// MT19937 (Matsumoto and Nishimura 1998), a block of numbers at a time: the numbers of
// std::mt19937, and of torch.rand in float64.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mdcp::cpu {

struct Mersenne {
    static constexpr int kWords = 624, kShift = 397, kNumbers = kWords / 2;
    double numbers[kNumbers];  // of the last block
    uint32_t words[kWords];
    int64_t used;  // of the numbers

    void seed(uint32_t value) {
        words[0] = value;
        for (uint32_t i = 1; i < kWords; ++i) {
            words[i] = 1812433253u * (words[i - 1] ^ (words[i - 1] >> 30)) + i;
        }
        used = kNumbers;
    }

    // In [0, 1), of 53 bits.
    void fill(double* out, int64_t count) {
        while (count > 0) {
            if (used == kNumbers) next_block();
            const int64_t part = std::min(count, kNumbers - used);
            std::copy_n(numbers + used, part, out);
            out += part;
            count -= part;
            used += part;
        }
    }

  private:
    static uint32_t tempered(uint32_t y) {
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        return y ^ (y >> 18);
    }

    static uint32_t twisted(uint32_t high, uint32_t low, uint32_t far) {
        const uint32_t y = (high & 0x80000000u) | (low & 0x7fffffffu);
        return far ^ (y >> 1) ^ (-(y & 1u) & 0x9908b0dfu);
    }

    void next_block() {
        int i = 0;
        for (; i < kWords - kShift; ++i) {
            words[i] = twisted(words[i], words[i + 1], words[i + kShift]);
        }
        for (; i < kWords - 1; ++i) {
            words[i] = twisted(words[i], words[i + 1], words[i + kShift - kWords]);
        }
        words[i] = twisted(words[i], words[0], words[kShift - 1]);
        uint32_t out[kWords];
        for (i = 0; i < kWords; ++i) out[i] = tempered(words[i]);
        for (i = 0; i < kNumbers; ++i) {
            const uint64_t bits = uint64_t{out[2 * i]} << 32 | out[2 * i + 1];
            numbers[i] =
                static_cast<double>(static_cast<int64_t>(bits & 0x1fffffffffffffu)) * 0x1p-53;
        }
        used = 0;
    }
};

}  // namespace mdcp::cpu
