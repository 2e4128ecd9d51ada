#include <cuda_runtime.h>

#include "native.h"

namespace mdcp {

int cuda_device_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace mdcp
