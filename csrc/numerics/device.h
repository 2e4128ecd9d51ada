// Arithmetic for both devices: the C++ compiler and nvcc read the same functions.
#pragma once

#ifdef __CUDACC__
#define MDCP_BOTH __host__ __device__ __forceinline__
#else
#define MDCP_BOTH inline __attribute__((always_inline))
#endif
