// Warp operations. A lane may name only masks that hold itself, every lane of the mask that has not
// returned must come to the same operation, and only lanes of the mask can be read.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine.h"

namespace emulation {

constexpr unsigned kAllLanes = 0xffffffffu;

// The lane read by each form; `width` splits the warp in groups that shuffle by themselves. Out of
// the group, a lane reads itself.
inline unsigned shuffle_source(unsigned lane, unsigned from, unsigned width) {
    return (lane & ~(width - 1)) | (from & (width - 1));
}
inline unsigned shuffle_up_source(unsigned lane, unsigned delta, unsigned width) {
    return (lane & (width - 1)) >= delta ? lane - delta : lane;
}
inline unsigned shuffle_down_source(unsigned lane, unsigned delta, unsigned width) {
    return (lane & (width - 1)) + delta < width ? lane + delta : lane;
}
inline unsigned shuffle_xor_source(unsigned lane, unsigned bits, unsigned width) {
    const unsigned source = lane ^ bits;
    return source <= (lane | (width - 1)) ? source : lane;
}

template <class T, class Source>
T shuffle(unsigned mask, T value, unsigned operand, int width, Source source, const char* site) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                  "CUDA shuffles arithmetic types of 32 and 64 bit");
    if (width < 1 || width > 32 || (width & (width - 1)))
        throw Violation(std::string(site) + ": width: expected a power of two up to 32, got " +
                        std::to_string(width));
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const unsigned from = source(current->lane(), operand, static_cast<unsigned>(width));
    bits = warp(WarpOperation::kShuffle, mask, bits, from, site);
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Applies `combine` to the values of the mask's lanes in their order.
template <class T, class Combine>
T warp_reduce(unsigned mask, T value, Combine combine, const char* site) {
    T total{};
    bool first = true;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const T other = shuffle(mask, value, lane, 32, shuffle_source, site);
        total = first ? other : combine(total, other);
        first = false;
    }
    return total;
}

template <class T>
unsigned match_any(unsigned mask, T value, const char* site) {
    static_assert(std::is_arithmetic_v<T>);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return static_cast<unsigned>(warp(WarpOperation::kMatch, mask, bits, 0, site));
}

template <class T>
unsigned match_all(unsigned mask, T value, int* all, const char* site) {
    const unsigned same = match_any(mask, value, site);
    *all = same == mask;
    return *all ? mask : 0;
}

inline unsigned ballot(unsigned mask, int predicate, const char* site) {
    return static_cast<unsigned>(warp(WarpOperation::kBallot, mask, predicate != 0, 0, site));
}

}  // namespace emulation

#define EMULATION_SHUFFLE(name, T, operand_type, rule)                                 \
    template <class T>                                                                 \
    T emulation_##name(const char* site, unsigned mask, T value, operand_type operand, \
                       int width = 32) {                                               \
        return emulation::shuffle(mask, value, static_cast<unsigned>(operand), width,  \
                                  emulation::rule, site);                              \
    }
EMULATION_SHUFFLE(shfl, T, int, shuffle_source)
EMULATION_SHUFFLE(shfl_up, T, unsigned, shuffle_up_source)
EMULATION_SHUFFLE(shfl_down, T, unsigned, shuffle_down_source)
EMULATION_SHUFFLE(shfl_xor, T, int, shuffle_xor_source)
#undef EMULATION_SHUFFLE

#define __shfl_sync(...) emulation_shfl(EMULATION_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_up_sync(...) emulation_shfl_up(EMULATION_SITE("__shfl_up_sync"), __VA_ARGS__)
#define __shfl_down_sync(...) emulation_shfl_down(EMULATION_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...) emulation_shfl_xor(EMULATION_SITE("__shfl_xor_sync"), __VA_ARGS__)

inline void emulation_syncwarp(const char* site, unsigned mask = emulation::kAllLanes) {
    emulation::warp(emulation::WarpOperation::kSync, mask, 0, 0, site);
}
#define __syncwarp(...) emulation_syncwarp(EMULATION_SITE("__syncwarp") __VA_OPT__(, ) __VA_ARGS__)

#define __ballot_sync(mask, predicate) \
    emulation::ballot(mask, static_cast<bool>(predicate), EMULATION_SITE("__ballot_sync"))
#define __any_sync(mask, predicate) \
    static_cast<int>(               \
        emulation::ballot(mask, static_cast<bool>(predicate), EMULATION_SITE("__any_sync")) != 0)
#define __all_sync(mask, predicate) \
    static_cast<int>(               \
        emulation::ballot(mask, !static_cast<bool>(predicate), EMULATION_SITE("__all_sync")) == 0)
#define __match_any_sync(mask, value) \
    emulation::match_any(mask, value, EMULATION_SITE("__match_any_sync"))
#define __match_all_sync(mask, value, all) \
    emulation::match_all(mask, value, all, EMULATION_SITE("__match_all_sync"))
#define __activemask() emulation::active_mask()

#define EMULATION_REDUCE(mask, value, expression, name)                                          \
    emulation::warp_reduce(                                                                      \
        mask, value, [](auto a, decltype(a) b) { return static_cast<decltype(a)>(expression); }, \
        EMULATION_SITE(name))
#define __reduce_add_sync(mask, value) EMULATION_REDUCE(mask, value, a + b, "__reduce_add_sync")
#define __reduce_min_sync(mask, value) \
    EMULATION_REDUCE(mask, value, (b < a ? b : a), "__reduce_min_sync")
#define __reduce_max_sync(mask, value) \
    EMULATION_REDUCE(mask, value, (a < b ? b : a), "__reduce_max_sync")
#define __reduce_and_sync(mask, value) EMULATION_REDUCE(mask, value, a& b, "__reduce_and_sync")
#define __reduce_or_sync(mask, value) EMULATION_REDUCE(mask, value, a | b, "__reduce_or_sync")
#define __reduce_xor_sync(mask, value) EMULATION_REDUCE(mask, value, a ^ b, "__reduce_xor_sync")
