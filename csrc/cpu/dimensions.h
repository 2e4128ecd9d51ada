// Kernels exist for a few numbers of dimensions; coordinates of 0 fill the rest.
#pragma once

#include <cstdint>

#include "cpu/simd.h"

namespace mdcp::cpu {

// The kernel for points of so many dimensions, at most 16. Zeros change no distance.
inline int32_t kernel_dimensions(int32_t given) {
    return given <= 4 ? given : given <= 8 ? 8 : 16;
}

template <template <int> class Kernel, class... Args>
void dispatch_dimensions(int32_t kernel, int simd, Args... args) {
    switch (kernel) {
        case 1:
            return dispatch<Kernel<1>>(simd, args...);
        case 2:
            return dispatch<Kernel<2>>(simd, args...);
        case 3:
            return dispatch<Kernel<3>>(simd, args...);
        case 4:
            return dispatch<Kernel<4>>(simd, args...);
        case 8:
            return dispatch<Kernel<8>>(simd, args...);
        default:
            return dispatch<Kernel<16>>(simd, args...);
    }
}

}  // namespace mdcp::cpu
