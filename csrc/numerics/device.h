// Arithmetic for both devices: the C++ compiler and nvcc read the same functions.
#pragma once

#ifdef __CUDACC__
#define MDCP_BOTH __host__ __device__ __forceinline__
#else
#define MDCP_BOTH inline __attribute__((always_inline))
#endif

// Stands before a loop over the dimensions of a point. Left whole, it would keep a loop over lanes
// around it from becoming vectors; GCC by itself stops unrolling at fewer than sixteen.
#ifdef __CUDACC__
#define MDCP_DIMENSIONS
#else
#define MDCP_DIMENSIONS _Pragma("GCC unroll 16")
#endif
