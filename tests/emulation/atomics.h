// Atomic functions of CUDA on 32 and 64 bit, for global and shared memory alike. Relaxed, as CUDA's
// are: they order nothing else. Each returns the old value.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine.h"

namespace emulation {

template <class T>
using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <class T>
Bits<T> to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA has atomics on 32 and 64 bit");
    Bits<T> bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class T>
T from_bits(Bits<T> bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Replaces *address by change(*address) in one indivisible step.
template <class T, class Change>
T atomic_update(T* address, Change change) {
    interleave();
    auto* const word = reinterpret_cast<Bits<T>*>(address);
    Bits<T> old = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(word, &old, to_bits<T>(change(from_bits<T>(old))), false,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return from_bits<T>(old);
}

// The second parameter of a CUDA atomic has the type of the first's target: no deduction from it.
template <class T>
struct Same {
    using type = T;
};
template <class T>
using same_t = typename Same<T>::type;

}  // namespace emulation

// Integers wrap around, as on the device.
template <class T>
T atomicAdd(T* address, emulation::same_t<T> value) {
    static_assert(!std::is_same_v<T, long long> && !std::is_same_v<T, long>,
                  "CUDA's 64-bit atomicAdd takes unsigned long long");
    return emulation::atomic_update(address, [value](T old) {
        if constexpr (std::is_integral_v<T>) {
            using Unsigned = std::make_unsigned_t<T>;
            return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
        } else {
            return old + value;
        }
    });
}
template <class T>
T atomicSub(T* address, emulation::same_t<T> value) {
    static_assert(sizeof(T) == 4 && std::is_integral_v<T>,
                  "CUDA's atomicSub takes 32-bit integers");
    return emulation::atomic_update(address, [value](T old) {
        return static_cast<T>(static_cast<uint32_t>(old) - static_cast<uint32_t>(value));
    });
}
template <class T>
T atomicMin(T* address, emulation::same_t<T> value) {
    static_assert(std::is_integral_v<T>, "CUDA's atomicMin takes integers");
    return emulation::atomic_update(address, [value](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, emulation::same_t<T> value) {
    static_assert(std::is_integral_v<T>, "CUDA's atomicMax takes integers");
    return emulation::atomic_update(address, [value](T old) { return old < value ? value : old; });
}
template <class T>
T atomicAnd(T* address, emulation::same_t<T> value) {
    return emulation::atomic_update(address, [value](T old) { return old & value; });
}
template <class T>
T atomicOr(T* address, emulation::same_t<T> value) {
    return emulation::atomic_update(address, [value](T old) { return old | value; });
}
template <class T>
T atomicXor(T* address, emulation::same_t<T> value) {
    return emulation::atomic_update(address, [value](T old) { return old ^ value; });
}
template <class T>
T atomicExch(T* address, emulation::same_t<T> value) {
    return emulation::atomic_update(address, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* address, emulation::same_t<T> expected, emulation::same_t<T> value) {
    return emulation::atomic_update(address, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
    return emulation::atomic_update(address,
                                    [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}
inline unsigned atomicDec(unsigned* address, unsigned limit) {
    return emulation::atomic_update(
        address, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}

inline void __threadfence_block() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
inline void __threadfence_system() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
