#include "cpu/simd.h"

namespace mdcp::cpu {

int simd_best() {
#ifdef MDCP_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
        return kAvx512;
    }
    if (__builtin_cpu_supports("avx2")) return kAvx2;
#endif
    return kBaseline;
}

}  // namespace mdcp::cpu
