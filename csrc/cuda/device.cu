#include <cuda_runtime.h>

#include "cuda/device.h"

namespace mdcp::cuda {

int device_count() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace mdcp::cuda
