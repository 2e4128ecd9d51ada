// What each word of CUDA's vocabulary must mean, as kernels whose answers are known.
#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "driver.h"

using driver::Buffer;
using driver::expect;

namespace {

constexpr unsigned kAll = 0xffffffffu;

__global__ void indices(unsigned* out) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

__global__ void barriers(int* out) {
    __shared__ int reversed[96];
    const int t = static_cast<int>(threadIdx.x);
    reversed[95 - t] = t;
    __syncthreads();
    out[t] = reversed[t];
    const int count = __syncthreads_count(t % 3 == 0);
    const int any = __syncthreads_or(t == 50);
    const int none = __syncthreads_or(t == 96);
    const int every = __syncthreads_and(t < 96);
    const int not_every = __syncthreads_and(t != 50);
    out[96 + t] = count * 10000 + any * 1000 + none * 100 + every * 10 + not_every;
}

__global__ void shuffles(int* out) {
    const int lane = static_cast<int>(threadIdx.x);
    int* const mine = out + lane * 8;
    mine[0] = __shfl_sync(kAll, lane, 5);
    mine[1] = __shfl_sync(kAll, lane, 5, 4);
    mine[2] = __shfl_up_sync(kAll, lane, 3);
    mine[3] = __shfl_down_sync(kAll, lane, 3, 8);
    mine[4] = __shfl_xor_sync(kAll, lane, 9);
    mine[5] = static_cast<int>(__shfl_xor_sync(kAll, 0.25 * lane, 1) * 4);
    // Both halves shuffle on their own.
    const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
    mine[6] = lane < 16 ? __shfl_sync(half, lane, 3) : __shfl_sync(half, lane, 20);
    __syncwarp(half);
    mine[7] = __reduce_add_sync(half, lane);
}

__global__ void votes(unsigned* out) {
    const int lane = static_cast<int>(threadIdx.x);
    unsigned* const mine = out + lane * 6;
    mine[0] = __ballot_sync(kAll, lane % 2);
    mine[1] = static_cast<unsigned>(__any_sync(kAll, lane == 7));
    mine[2] = static_cast<unsigned>(__all_sync(kAll, lane != 7));
    mine[3] = __match_any_sync(kAll, lane % 4);
    int same = 0;
    mine[4] = __match_all_sync(kAll, 3.5f, &same);
    mine[5] = static_cast<unsigned>(same);
}

__global__ void atomics(int* i, unsigned* u, unsigned long long* w, float* f) {
    const int t = static_cast<int>(threadIdx.x);
    atomicAdd(&i[0], t);
    atomicSub(&i[1], 1);
    atomicMin(&i[2], -t);
    atomicMax(&i[3], t);
    atomicOr(&u[0], 1u << t % 32);
    atomicAnd(&u[1], ~(1u << t % 32));
    atomicXor(&u[2], 1u << t % 32);
    atomicInc(&u[3], 9);
    if (atomicCAS(&u[4], 0u, 1u) == 0) atomicExch(&u[5], 77u);
    atomicAdd(&w[0], ~0ull);
    atomicMax(&w[1], 1ull << t % 64);
    atomicAdd(f, 0.5f);
}

// The order in which the threads came.
__global__ void arrivals(unsigned* next, unsigned* out) {
    out[atomicAdd(next, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}

// As many bytes of dynamic shared memory as the launch has.
__global__ void dynamic(unsigned bytes, int* out) {
    MDCP_DYNAMIC_SHARED(unsigned char, shared);
    for (unsigned i = threadIdx.x; i < bytes; i += blockDim.x) shared[i] = 3;
    __syncthreads();
    if (threadIdx.x == 0) *out = shared[0] + shared[bytes - 1];
}

template <class T>
std::vector<T> values(Buffer<T>& buffer) {
    return std::vector<T>(buffer.data(), buffer.data() + buffer.size());
}

void check_indices() {
    Buffer<unsigned> out(2 * 3 * 2 * 4 * 3 * 2);
    MDCP_LAUNCH(indices, dim3(2, 3, 2), dim3(4, 3, 2), 0, nullptr, out.data());
    for (unsigned i = 0; i < out.size(); ++i)
        expect(out.data()[i] == 1000 * (i / 24) + i % 24, "indices");
}

void check_barriers() {
    Buffer<int> out(192);
    MDCP_LAUNCH(barriers, 1, 96, 0, nullptr, out.data());
    for (int t = 0; t < 96; ++t) {
        expect(out.data()[t] == 95 - t, "shared memory behind a barrier");
        expect(out.data()[96 + t] == 321010, "barriers that count");
    }
}

void check_warps() {
    Buffer<int> out(32 * 8);
    MDCP_LAUNCH(shuffles, 1, 32, 0, nullptr, out.data());
    for (int lane = 0; lane < 32; ++lane) {
        const int* const mine = out.data() + lane * 8;
        expect(mine[0] == 5, "shfl");
        expect(mine[1] == lane / 4 * 4 + 1, "shfl in groups");
        expect(mine[2] == (lane < 3 ? lane : lane - 3), "shfl_up");
        expect(mine[3] == (lane % 8 < 5 ? lane + 3 : lane), "shfl_down in groups");
        expect(mine[4] == (lane ^ 9), "shfl_xor");
        expect(mine[5] == (lane ^ 1), "shfl_xor of doubles");
        expect(mine[6] == (lane < 16 ? 3 : 20), "shfl of half a warp");
        expect(mine[7] == (lane < 16 ? 120 : 376), "reduce of half a warp");
    }
    Buffer<unsigned> votes_out(32 * 6);
    MDCP_LAUNCH(votes, 1, 32, 0, nullptr, votes_out.data());
    for (int lane = 0; lane < 32; ++lane) {
        const unsigned* const mine = votes_out.data() + lane * 6;
        expect(mine[0] == 0xaaaaaaaau, "ballot");
        expect(mine[1] == 1 && mine[2] == 0, "any, all");
        expect(mine[3] == 0x11111111u << lane % 4, "match_any");
        expect(mine[4] == kAll && mine[5] == 1, "match_all");
    }
}

void check_atomics() {
    Buffer<int> i(std::vector<int>{0, 0, 0, 0});
    Buffer<unsigned> u(std::vector<unsigned>{0, kAll, 0, 0, 0, 0});
    Buffer<unsigned long long> w(std::vector<unsigned long long>{1, 0});
    Buffer<float> f(std::vector<float>{0});
    MDCP_LAUNCH(atomics, 1, 96, 0, nullptr, i.data(), u.data(), w.data(), f.data());
    expect(values(i) == std::vector<int>{4560, -96, -95, 95}, "atomics on int");
    expect(values(u) == std::vector<unsigned>{kAll, 0, kAll, 6, 1, 77}, "atomics on unsigned");
    expect(w.data()[0] == 1ull - 96 && w.data()[1] == 1ull << 63, "atomics on 64 bit");
    expect(*f.data() == 48, "atomicAdd on float");
}

std::vector<unsigned> order(uint64_t seed) {
    emulation_set_schedule(seed);
    Buffer<unsigned> next(std::vector<unsigned>{0}), out(4 * 64);
    MDCP_LAUNCH(arrivals, 4, 64, 0, nullptr, next.data(), out.data());
    return values(out);
}

void check_schedules() {
    std::vector<unsigned> ascending(256);
    std::iota(ascending.begin(), ascending.end(), 0u);
    std::vector<unsigned> seventh = order(7);
#ifndef MDCP_EMULATION_THREADS
    expect(order(0) == ascending, "schedule 0 is ascending");
    expect(seventh != ascending && seventh == order(7), "a seed has an order of its own");
    expect(seventh != order(8), "another seed has another order");
#endif
    std::sort(seventh.begin(), seventh.end());
    expect(seventh == ascending, "every thread runs once");
}

bool refused(dim3 grid, dim3 block, size_t shared_bytes, const std::string& why) {
    Buffer<int> out(1);
    try {
        MDCP_LAUNCH(dynamic, grid, block, shared_bytes, nullptr,
                    static_cast<unsigned>(shared_bytes), out.data());
    } catch (const std::runtime_error& error) {
        expect(std::string(error.what()).find(why) != std::string::npos, error.what());
        return true;
    }
    expect(*out.data() == 6, "dynamic shared memory");
    return false;
}

void check_launches() {
    expect(refused(1, 1025, 16, "block"), "a block is not too large");
    expect(refused(1, 0, 16, "block"), "a block is not empty");
    expect(refused(0, 32, 16, "grid"), "a grid is not empty");
    expect(refused(dim3(1, 65536), 32, 16, "grid"), "a grid is not too high");
    expect(!refused(1, 1024, 48 << 10, ""), "48 KB of shared memory are free");
    expect(refused(1, 32, 64 << 10, "shared"), "more must be asked for");
    expect(cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10) ==
               cudaSuccess,
           "asking for shared memory");
    expect(!refused(1, 32, 64 << 10, ""), "what was asked for is there");
    expect(cudaFuncSetAttribute(dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, 1 << 20) !=
               cudaSuccess,
           "no device has a megabyte");
}

void check_intrinsics() {
    expect(__float_as_int(1.0f) == 0x3f800000 && __int_as_float(0x40000000) == 2.0f, "float bits");
    expect(__longlong_as_double(__double_as_longlong(-3.25)) == -3.25, "double bits");
    expect(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64, "popc");
    expect(__clz(0) == 32 && __clz(1) == 31 && __clzll(1) == 63, "clz");
    expect(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41, "ffs");
    expect(__brev(1u) == 0x80000000u && __byte_perm(0x33221100, 0x77665544, 0x7130) == 0x77113300,
           "brev, byte_perm");
    expect(__umulhi(0x80000000u, 6u) == 3 && __mulhi(-1, 1) == -1, "mulhi");
    expect(__umul64hi(1ull << 63, 6) == 3 && __mul64hi(-1, 1) == -1, "mul64hi");
    expect(__funnelshift_l(0x80000000u, 1u, 1) == 3 && __funnelshift_r(2u, 1u, 1) == 0x80000001u,
           "funnelshift");
    expect(__float2int_rn(2.5f) == 2 && __double2ll_rn(-3.5) == -4, "rounding to even");
    expect(__float2int_rn(1e20f) == 2147483647 && __float2int_rn(NAN) == 0, "conversions saturate");
    expect(__fadd_rn(1.0f, 2.0f) == 3 && __fmul_rn(3.0f, 0.5f) == 1.5f, "float arithmetic");
    expect(min(3, 4u) == 3 && max(-1.0f, NAN) == -1.0f, "min, max");
}

void check_copies() {
    Buffer<int> from(std::vector<int>{1, 2, 3}), to(3);
    cudaMemsetAsync(to.data(), 0, 12, nullptr);
    expect(values(to) == std::vector<int>{0, 0, 0}, "memset");
    cudaMemcpyAsync(to.data(), from.data(), 12, cudaMemcpyDeviceToDevice, nullptr);
    expect(values(to) == values(from), "memcpy");
}

}  // namespace

int main(int count, char** arguments) {
    return driver::run(count, arguments, [] {
        check_indices();
        check_barriers();
        check_warps();
        check_atomics();
        check_launches();
        check_intrinsics();
        check_copies();
        check_schedules();
    });
}
