// One source, three instruction sets.
//
// A kernel is a struct with a static `run` marked MDCP_INLINE. dispatch<Kernel>(level, ...) calls
// it from a function that carries the level's target attribute; because `run` and all that it calls
// are forced inline, the compiler vectorises them for that level. The attribute belongs to the one
// function, so nothing that the linker may merge with a copy used elsewhere (a template of the
// standard library) is ever compiled for AVX. Inside `run`: no lambdas (they do not inherit the
// attribute) and nothing of std:: beyond plain values. With MDCP_ONE_LEVEL there is but the level
// that the compiler's options choose.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(MDCP_ONE_LEVEL)
#define MDCP_X86 1
#define MDCP_TARGET_AVX2 __attribute__((target("avx2")))
#define MDCP_TARGET_AVX512 \
    __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,prefer-vector-width=512")))
#endif
#define MDCP_INLINE inline __attribute__((always_inline))

namespace mdcp::cpu {

enum SimdLevel : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

#ifdef MDCP_X86
template <class Kernel, class... Args>
MDCP_TARGET_AVX2 void run_avx2(Args... args) {
    Kernel::run(args...);
}

template <class Kernel, class... Args>
MDCP_TARGET_AVX512 void run_avx512(Args... args) {
    Kernel::run(args...);
}
#endif

int simd_best();  // the highest level this processor runs

template <class Kernel, class... Args>
void dispatch(int level, Args... args) {
#ifdef MDCP_X86
    if (level >= kAvx512) return run_avx512<Kernel>(args...);
    if (level == kAvx2) return run_avx2<Kernel>(args...);
#endif
    (void)level;
    Kernel::run(args...);
}

}  // namespace mdcp::cpu
