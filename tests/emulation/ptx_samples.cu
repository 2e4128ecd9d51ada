// Small kernels that make nvcc emit each class of instructions; tests/emulation/test_ptx.py runs
// their PTX against NumPy.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define SAMPLE extern "C" __global__ void
#define INDEX (blockIdx.x * blockDim.x + threadIdx.x)

SAMPLE integers32(const int* a, const int* b, int* out, int n) {
    const int i = INDEX;
    if (i >= n) return;
    const int x = a[i], y = b[i];
    const unsigned u = x, v = y;
    int* o = out + i;
    o[0 * n] = x + y * 3;
    o[1 * n] = x - y;
    o[2 * n] = x * y;
    o[3 * n] = y ? x / y : 0;
    o[4 * n] = y ? x % y : 0;
    o[5 * n] = v ? u / v : 0;
    o[6 * n] = v ? u % v : 0;
    o[7 * n] = __mulhi(x, y);
    o[8 * n] = __umulhi(u, v);
    o[9 * n] = min(x, y) ^ max(u, v);
    o[10 * n] = x >> (y & 31);
    o[11 * n] = u << (v & 63 & 31);
    o[12 * n] = __popc(x);
    o[13 * n] = __clz(x);
    o[14 * n] = __brev(x);
    o[15 * n] = __ffs(x);
    o[16 * n] = (x & y) | (~x & 0x55);
    o[17 * n] = __byte_perm(u, v, 0x3715);
    o[18 * n] = __funnelshift_r(u, v, 7);
    o[19 * n] = abs(x) + (x > y ? 1 : 2);
    o[20 * n] = (u >> 5) & 0xff;
    o[21 * n] = __usad(u, v, 3);
}

SAMPLE integers64(const int64_t* a, const int64_t* b, int64_t* out, int n) {
    const int i = INDEX;
    if (i >= n) return;
    const int64_t x = a[i], y = b[i];
    const uint64_t u = x, v = y;
    int64_t* o = out + i;
    o[0 * n] = x * y + 5;
    o[1 * n] = y ? x / y : 0;
    o[2 * n] = y ? x % y : 0;
    o[3 * n] = v ? u / v : 0;
    o[4 * n] = __mul64hi(x, y);
    o[5 * n] = __umul64hi(u, v);
    o[6 * n] = x >> (y & 63);
    o[7 * n] = u >> (y & 63);
    o[8 * n] = x << (y & 63);
    o[9 * n] = __popcll(x);
    o[10 * n] = __clzll(x);
    o[11 * n] = __brevll(x);
    o[12 * n] = min(x, y);
    o[13 * n] = max(u, v);
    o[14 * n] = static_cast<int64_t>(static_cast<int>(x)) * static_cast<int>(y);
    o[15 * n] = static_cast<int16_t>(x) + static_cast<uint8_t>(y);
}

SAMPLE floats32(const float* a, const float* b, const float* c, float* out, int n) {
    const int i = INDEX;
    if (i >= n) return;
    const float x = a[i], y = b[i], z = c[i];
    float* o = out + i;
    o[0 * n] = x + y;
    o[1 * n] = x - y;
    o[2 * n] = x * y;
    o[3 * n] = x / y;
    o[4 * n] = sqrtf(fabsf(x));
    o[5 * n] = __fmaf_rn(x, y, z);
    o[6 * n] = fminf(x, y);
    o[7 * n] = fmaxf(x, y);
    o[8 * n] = x < y ? -x : z;
    o[9 * n] = rintf(x) + floorf(y) + ceilf(z);
    o[10 * n] = truncf(x);
    o[11 * n] = __fadd_rz(x, y);
    o[12 * n] = __fmul_rd(x, y);
    o[13 * n] = __fadd_ru(x, y);
    o[14 * n] = 1.0f / x;
    o[15 * n] = copysignf(x, y);
}

SAMPLE floats64(const double* a, const double* b, const double* c, double* out, int n) {
    const int i = INDEX;
    if (i >= n) return;
    const double x = a[i], y = b[i], z = c[i];
    double* o = out + i;
    o[0 * n] = x + y;
    o[1 * n] = x - y;
    o[2 * n] = x * y;
    o[3 * n] = x / y;
    o[4 * n] = sqrt(fabs(x));
    o[5 * n] = fma(x, y, z);
    o[6 * n] = fmin(x, y);
    o[7 * n] = fmax(x, y);
    o[8 * n] = x >= y ? z : -z;
    o[9 * n] = rint(x);
    o[10 * n] = floor(y);
    o[11 * n] = 1.0 / x;
}

SAMPLE conversions(const double* a, const int64_t* b, float* floats, int64_t* wholes, int n) {
    const int i = INDEX;
    if (i >= n) return;
    const double x = a[i];
    const int64_t k = b[i];
    floats[0 * n + i] = static_cast<float>(x);
    floats[1 * n + i] = static_cast<float>(k);
    floats[2 * n + i] = static_cast<float>(static_cast<uint64_t>(k));
    floats[3 * n + i] = static_cast<float>(static_cast<int>(k));
    floats[4 * n + i] = __double2float_rd(x);
    floats[5 * n + i] = __ll2float_rz(k);
    wholes[0 * n + i] = static_cast<int64_t>(x);
    wholes[1 * n + i] = static_cast<int>(x);
    wholes[2 * n + i] = __double2ll_rn(x);
    wholes[3 * n + i] = __double2int_ru(x);
    wholes[4 * n + i] = __double_as_longlong(static_cast<double>(k));
    wholes[5 * n + i] = __double_as_longlong(static_cast<double>(static_cast<uint64_t>(k)));
    wholes[6 * n + i] = static_cast<unsigned char>(k) - static_cast<signed char>(k);
}

SAMPLE halves(const __half* a, const __half* b, const __nv_bfloat16* c, const __nv_bfloat16* d,
              __half* half, __nv_bfloat16* brain, float* wide, int n) {
    const int i = INDEX;
    if (i >= n) return;
    half[0 * n + i] = __hadd_rn(a[i], b[i]);
    half[1 * n + i] = __hmul_rn(a[i], b[i]);
    half[2 * n + i] = __hfma(a[i], b[i], a[i]);
    half[3 * n + i] = __float2half_rn(__half2float(a[i]) * 1.2345678f);
    half[4 * n + i] = __hmax(a[i], b[i]);
    brain[0 * n + i] = __float2bfloat16_rn(__bfloat162float(c[i]) * 1.2345678f);
    brain[1 * n + i] = __hmul_rn(c[i], d[i]);
    brain[2 * n + i] = __hadd_rn(c[i], d[i]);
    wide[0 * n + i] = __half2float(a[i]);
    wide[1 * n + i] = __bfloat162float(c[i]);
}

// Collatz: threads leave a loop at different times; a switch; an early return inside.
SAMPLE control(const int* a, int* out, int n) {
    const int i = INDEX;
    if (i >= n) return;
    unsigned x = a[i];
    int steps = 0;
    while (x > 1 && steps < 1000) {
        x = x & 1 ? 3 * x + 1 : x / 2;
        ++steps;
    }
    switch (steps % 7) {
        case 0:
            out[i] = steps;
            return;
        case 1:
            out[i] = steps * 3 + a[i];
            break;
        case 2:
            out[i] = -steps;
            break;
        case 3:
            out[i] = steps ^ a[i];
            break;
        case 4:
            for (int k = 0; k < steps; ++k) out[i] = k * k;
            break;
        case 5:
            out[i] = 55;
            break;
        default:
            out[i] = a[i] - steps;
            break;
    }
    if (steps % 2) out[i] += 1;
}

// Sums of a block: shuffles, shared memory, barriers. A multiple of 32 threads.
SAMPLE block_sum(const int* a, int* out, int n) {
    __shared__ int sums[32];
    const int i = INDEX;
    int sum = i < n ? a[i] : 0;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        int total = 0;
        for (int warp = 0; warp < blockDim.x / 32; ++warp) total += sums[warp];
        out[blockIdx.x] = total;
    }
}

// Each thread's neighbours in dynamic shared memory: reversed, then shifted by one.
SAMPLE mirror(const float* a, float* out) {
    extern __shared__ float row[];
    const int i = threadIdx.x, n = blockDim.x;
    row[i] = a[blockIdx.x * n + i];
    __syncthreads();
    const float mirrored = row[n - 1 - i];
    __syncthreads();
    row[i] = mirrored;
    __syncthreads();
    out[blockIdx.x * n + i] = row[(i + 1) % n];
}

SAMPLE warps(const int* a, int* out, int n) {
    const unsigned all = 0xffffffffu;
    const int i = INDEX, x = a[i];
    int* o = out + i;
    o[0 * n] = __shfl_sync(all, x, 3, 8);
    o[1 * n] = __shfl_up_sync(all, x, 2);
    o[2 * n] = __shfl_down_sync(all, x, 5, 16);
    o[3 * n] = __ballot_sync(all, x & 1);
    o[4 * n] = __any_sync(all, x == 7) + 2 * __all_sync(all, x >= 0);
    o[5 * n] = __syncthreads_count(x & 1);
    o[6 * n] = __syncthreads_or(x == 7) + 2 * __syncthreads_and(x >= 0);
    const double d = x * 0.5;
    o[7 * n] = static_cast<int>(2 * __shfl_xor_sync(all, d, 9));
#if __CUDA_ARCH__ >= 800
    o[8 * n] = __reduce_add_sync(all, x);
    o[9 * n] = __reduce_max_sync(all, x);
#endif
    o[10 * n] = __match_any_sync(all, x % 4);
    if (x & 1) {  // half a warp on its own
        const unsigned mask = __activemask();
        o[11 * n] = __popc(mask);
        o[12 * n] = __shfl_sync(mask, x, __ffs(mask) - 1);
    }
}

SAMPLE atomics(const int* a, unsigned* ints, unsigned long long* longs, float* floats, int n) {
    __shared__ unsigned counts[8];
    const int i = INDEX;
    if (threadIdx.x < 8) counts[threadIdx.x] = 0;
    __syncthreads();
    if (i < n) {
        atomicAdd(&counts[a[i] & 7], 1u);
        atomicAdd(&ints[8], 1u);
        atomicMax(&ints[9], static_cast<unsigned>(a[i]));
        atomicMin(&ints[10], static_cast<unsigned>(a[i]));
        atomicOr(&ints[11], 1u << (a[i] & 31));
        ints[16 + atomicAdd(&ints[12], 1u)] = a[i];
        atomicCAS(&ints[13], 0u, static_cast<unsigned>(a[i]) + 1);
        atomicAdd(&longs[0], static_cast<unsigned long long>(a[i]) << 20);
        atomicAdd(&floats[0], 0.25f);
    }
    __syncthreads();
    if (threadIdx.x < 8) atomicAdd(&ints[threadIdx.x], counts[threadIdx.x]);
}

struct Four {
    const float4* values;
    int count;
    float factor;
};

__constant__ float weights[4] = {1.0f, 2.0f, 3.0f, 4.0f};
__device__ int table[6] = {5, 4, 3, 2, 1, 0};

__device__ __noinline__ int called(int x, const int* other) {
    if (x % 3 == 0) return other[x % 6];
    return x * 2;
}

// A struct by value, a vector load, constant and global variables, a call, local memory.
SAMPLE spaces(Four four, float* out, int* called_out, int pick) {
    const int i = INDEX;
    if (i >= four.count) return;
    const float4 v = four.values[i];
    float own[8];
    for (int k = 0; k < 8; ++k) own[(k + pick) % 8] = k * four.factor;
    out[i] = v.x * weights[0] + v.y * weights[1] + v.z * weights[2] + v.w * weights[3] +
             own[(i + pick) % 8];
    called_out[i] = called(i, table) + called(i + 1, table);
}

// Matrices of 8 x 8 numbers of 16 bits, by one warp: four stored, row i of them at a place of the
// caller's choice, one loaded and two, transposed. Only the lanes that name rows have an address.
SAMPLE matrices(const unsigned* held, const int* place, unsigned* stored, unsigned* loaded) {
#if __CUDA_ARCH__ >= 900
    __shared__ __align__(16) unsigned tile[32 * 4];
    const int lane = threadIdx.x;
    const unsigned begin = static_cast<unsigned>(__cvta_generic_to_shared(tile));
    const unsigned row = begin + 16 * place[lane];
    const unsigned *a = held + lane, nowhere = 1;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row),
                 "r"(a[0]), "r"(a[32]), "r"(a[64]), "r"(a[96])
                 : "memory");
    __syncthreads();
    for (int k = 0; k < 4; ++k) stored[32 * k + lane] = tile[32 * k + lane];
    unsigned one, two, three;
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(one)
                 : "r"(lane < 8 ? row : nowhere)
                 : "memory");
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(two), "=r"(three)
                 : "r"(lane < 16 ? row : nowhere)
                 : "memory");
    loaded[lane] = one;
    loaded[32 + lane] = two;
    loaded[64 + lane] = three;
    __syncthreads();
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(
                     lane < 16 ? begin + 16 * lane : nowhere),
                 "r"(a[64]), "r"(a[96])
                 : "memory");
    __syncthreads();
    for (int k = 0; k < 2; ++k) stored[128 + 32 * k + lane] = tile[32 * k + lane];
#endif
}
