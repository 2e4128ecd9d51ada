// Intrinsic functions and built-in vector types of CUDA, in the host's arithmetic. Approximate ones
// (__expf, rsqrtf, ...) are left out: their answers could not agree bit for bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulation {

template <class To, class From>
To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// Rounded to the nearest even, bounded by the target's range; NaN gives 0, as on the device.
template <class To, class From>
To round_to(From value) {
    const From rounded = std::nearbyint(value);
    constexpr To lowest = std::numeric_limits<To>::min(), highest = std::numeric_limits<To>::max();
    if (rounded != rounded) return 0;
    if (rounded <= static_cast<From>(lowest)) return lowest;
    if (rounded >= static_cast<From>(highest)) return highest;
    return static_cast<To>(rounded);
}

}  // namespace emulation

#define EMULATION_BITS(name, To, From)         \
    inline To name(From value) {               \
        return emulation::bit_cast<To>(value); \
    }
EMULATION_BITS(__float_as_int, int, float)
EMULATION_BITS(__float_as_uint, unsigned, float)
EMULATION_BITS(__int_as_float, float, int)
EMULATION_BITS(__uint_as_float, float, unsigned)
EMULATION_BITS(__double_as_longlong, long long, double)
EMULATION_BITS(__longlong_as_double, double, long long)
#undef EMULATION_BITS

inline double __hiloint2double(int high, int low) {
    return emulation::bit_cast<double>(static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 |
                                       static_cast<unsigned>(low));
}
inline int __double2hiint(double value) {
    return static_cast<int>(emulation::bit_cast<uint64_t>(value) >> 32);
}
inline int __double2loint(double value) {
    return static_cast<int>(emulation::bit_cast<uint64_t>(value));
}

// Rounding to the nearest even is the host's own mode; the operations are spelled out because the
// device's compiler may not fuse them.
#define EMULATION_ARITHMETIC(T, prefix)     \
    inline T __##prefix##add_rn(T a, T b) { \
        return a + b;                       \
    }                                       \
    inline T __##prefix##sub_rn(T a, T b) { \
        return a - b;                       \
    }                                       \
    inline T __##prefix##mul_rn(T a, T b) { \
        return a * b;                       \
    }                                       \
    inline T __##prefix##div_rn(T a, T b) { \
        return a / b;                       \
    }                                       \
    inline T __##prefix##rcp_rn(T a) {      \
        return T(1) / a;                    \
    }                                       \
    inline T __##prefix##sqrt_rn(T a) {     \
        return std::sqrt(a);                \
    }
EMULATION_ARITHMETIC(float, f)
EMULATION_ARITHMETIC(double, d)
#undef EMULATION_ARITHMETIC
inline float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
    return std::fma(a, b, c);
}

inline int __float2int_rn(float a) {
    return emulation::round_to<int>(a);
}
inline unsigned __float2uint_rn(float a) {
    return emulation::round_to<unsigned>(a);
}
inline long long __float2ll_rn(float a) {
    return emulation::round_to<long long>(a);
}
inline int __double2int_rn(double a) {
    return emulation::round_to<int>(a);
}
inline long long __double2ll_rn(double a) {
    return emulation::round_to<long long>(a);
}
inline float __double2float_rn(double a) {
    return static_cast<float>(a);
}
inline float __int2float_rn(int a) {
    return static_cast<float>(a);
}
inline float __uint2float_rn(unsigned a) {
    return static_cast<float>(a);
}
inline float __ll2float_rn(long long a) {
    return static_cast<float>(a);
}
inline double __int2double_rn(int a) {
    return a;
}
inline double __ll2double_rn(long long a) {
    return static_cast<double>(a);
}
inline double __ull2double_rn(unsigned long long a) {
    return static_cast<double>(a);
}

inline int __popc(unsigned a) {
    return __builtin_popcount(a);
}
inline int __popcll(unsigned long long a) {
    return __builtin_popcountll(a);
}
inline int __clz(int a) {
    return a ? __builtin_clz(static_cast<unsigned>(a)) : 32;
}
inline int __clzll(long long a) {
    return a ? __builtin_clzll(static_cast<unsigned long long>(a)) : 64;
}
inline int __ffs(int a) {
    return __builtin_ffs(a);
}
inline int __ffsll(long long a) {
    return __builtin_ffsll(a);
}
inline unsigned __brev(unsigned a) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed |= (a >> bit & 1u) << (31 - bit);
    return reversed;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned picked = 0;
    for (int i = 0; i < 4; ++i)
        picked |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return picked;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
    return static_cast<unsigned>(both >> (shift & 31));
}

inline int __mulhi(int a, int b) {
    return static_cast<int>(static_cast<int64_t>(a) * b >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline long long __mul64hi(long long a, long long b) {
    return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class T>
T __ldcg(const T* address) {
    return *address;
}
template <class T>
T __ldcs(const T* address) {
    return *address;
}
template <class T>
void __stcs(T* address, T value) {
    *address = value;
}

inline void __nanosleep(unsigned) {
    emulation::interleave();
}
[[noreturn]] inline void __trap() {
    throw emulation::Violation("__trap() was called");
}

// CUDA declares min and max for every pair of arithmetic types, in the global namespace; of a NaN
// and a number, the number.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmin(static_cast<T>(a), static_cast<T>(b));
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmax(static_cast<T>(a), static_cast<T>(b));
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

// T2, T3 and T4 with CUDA's alignment, and make_T2, make_T3, make_T4.
#define EMULATION_VECTORS(T, name)                                \
    struct alignas(2 * sizeof(T)) name##2 {                       \
        T x, y;                                                   \
    };                                                            \
    struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { \
        T x, y, z, w;                                             \
    };                                                            \
    inline name##2 make_##name##2(T x, T y) {                     \
        return {x, y};                                            \
    }                                                             \
    inline name##4 make_##name##4(T x, T y, T z, T w) {           \
        return {x, y, z, w};                                      \
    }
EMULATION_VECTORS(int, int)
EMULATION_VECTORS(unsigned, uint)
EMULATION_VECTORS(float, float)
EMULATION_VECTORS(double, double)
EMULATION_VECTORS(long long, longlong)
EMULATION_VECTORS(unsigned long long, ulonglong)
#undef EMULATION_VECTORS
struct int3 {
    int x, y, z;
};
struct float3 {
    float x, y, z;
};
inline int3 make_int3(int x, int y, int z) {
    return {x, y, z};
}
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
    return {x, y, z};
}
inline float3 make_float3(float x, float y, float z) {
    return {x, y, z};
}
