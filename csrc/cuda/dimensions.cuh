// Kernels for points exist for a few numbers of dimensions; coordinates of 0 fill the rest.
#pragma once

#include <cstdint>
#include <type_traits>

namespace mdcp::cuda {

// The kernel for points of so many dimensions, at most 16. Zeros change no distance.
inline int32_t padded_dimensions(int32_t given) {
    return given <= 2 ? 2 : given <= 4 ? given : given <= 8 ? 8 : 16;
}

// Calls launch(n), where decltype(n)::value is padded_dimensions(given).
template <class Launch>
void with_dimensions(int32_t given, Launch launch) {
    switch (padded_dimensions(given)) {
        case 2:
            return launch(std::integral_constant<int, 2>());
        case 3:
            return launch(std::integral_constant<int, 3>());
        case 4:
            return launch(std::integral_constant<int, 4>());
        case 8:
            return launch(std::integral_constant<int, 8>());
        default:
            return launch(std::integral_constant<int, 16>());
    }
}

}  // namespace mdcp::cuda
