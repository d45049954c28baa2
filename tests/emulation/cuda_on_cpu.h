// CUDA's words for g++: the threads of a block are fibers that take turns, so kernels run without a GPU.
//
// A fiber runs until it waits for others: at a barrier of its block or of its warp. Results are those of a GPU as far
// as they do not depend on the order of threads, so a barrier that is missing need not show.

#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

using std::max;
using std::min;

struct uint2 { unsigned int x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct dim3 { unsigned int x = 1, y = 1, z = 1; };
inline uint2 make_uint2(unsigned int x, unsigned int y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned int x, unsigned int y, unsigned int z, unsigned int w) { return {x, y, z, w}; }

struct Barrier {
    int waiting = 0, needed = 0;
    long turn = 0;
    void arrive() { if (waiting == needed) { waiting = 0; ++turn; } }
};

struct Warp {
    Barrier barrier;
    std::uint64_t slots[2][32];
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    dim3 thread;
    int lane;
    unsigned long exchanges = 0;
    Warp* warp;
    bool done = false;
};

inline ucontext_t scheduler;
inline Fiber* running;
inline Barrier block_barrier;
inline dim3 blockIdx, blockDim, gridDim;
inline const std::function<void()>* body;
#define threadIdx (running->thread)

inline void wait_at(Barrier& barrier) {
    const long turn = barrier.turn;
    ++barrier.waiting;
    barrier.arrive();
    while (barrier.turn == turn) swapcontext(&running->context, &scheduler);
}

inline void fiber_main() {
    (*body)();
    Fiber* fiber = running;
    fiber->done = true;
    --block_barrier.needed;
    --fiber->warp->barrier.needed;
    block_barrier.arrive();
    fiber->warp->barrier.arrive();
    swapcontext(&fiber->context, &scheduler);
}

inline void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
    const int count = block.x * block.y * block.z;
    body = &kernel;
    blockDim = block;
    gridDim = grid;
    std::vector<Fiber> fibers(count);
    for (Fiber& fiber : fibers) fiber.stack.reset(new char[1 << 16]);
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                std::vector<Warp> warps((count + 31) / 32);
                block_barrier = Barrier();
                block_barrier.needed = count;
                for (int i = 0; i < count; ++i) {
                    Fiber& fiber = fibers[i];
                    fiber.done = false;
                    fiber.exchanges = 0;
                    fiber.lane = i % 32;
                    fiber.warp = &warps[i / 32];
                    ++fiber.warp->barrier.needed;
                    fiber.thread = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
                    getcontext(&fiber.context);
                    fiber.context.uc_stack.ss_sp = fiber.stack.get();
                    fiber.context.uc_stack.ss_size = 1 << 16;
                    fiber.context.uc_link = nullptr;
                    makecontext(&fiber.context, fiber_main, 0);
                }
                for (int left = count; left > 0;)
                    for (Fiber& fiber : fibers) {
                        if (fiber.done) continue;
                        running = &fiber;
                        swapcontext(&scheduler, &fiber.context);
                        left -= fiber.done;
                    }
            }
}

inline void __syncthreads() { wait_at(block_barrier); }
inline void __syncwarp() { wait_at(running->warp->barrier); }

// What every lane gives, to all of them.
inline const std::uint64_t* exchange(std::uint64_t value) {
    std::uint64_t* slots = running->warp->slots[running->exchanges++ % 2];
    slots[running->lane] = value;
    __syncwarp();
    return slots;
}
inline unsigned int __ballot_sync(unsigned int, bool value) {
    const std::uint64_t* all = exchange(value);
    unsigned int bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned int>(all[i] & 1) << i;
    return bits;
}
inline unsigned int __match_any_sync(unsigned int, int value) {
    const std::uint64_t* all = exchange(static_cast<unsigned int>(value));
    unsigned int bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned int>(all[i] == static_cast<unsigned int>(value)) << i;
    return bits;
}
template <typename T> T __shfl_sync(unsigned int, T value, int lane) {
    return static_cast<T>(exchange(static_cast<std::uint64_t>(value))[lane & 31]);
}
template <typename T> T __shfl_up_sync(unsigned int, T value, int step) {
    const int lane = running->lane;
    const std::uint64_t* all = exchange(static_cast<std::uint64_t>(value));
    return static_cast<T>(all[lane >= step ? lane - step : lane]);
}
template <typename T> T __shfl_xor_sync(unsigned int, T value, int mask) {
    return static_cast<T>(exchange(static_cast<std::uint64_t>(value))[running->lane ^ mask]);
}
inline int __syncthreads_or(int value) {
    static int any[2];
    static int turn;
    if (block_barrier.waiting == 0) any[turn = static_cast<int>(block_barrier.turn % 2)] = 0;
    any[turn] |= value != 0;
    const int mine = turn;
    __syncthreads();
    return any[mine];
}

inline int atomicExch(int* place, int value) { const int old = *place; *place = value; return old; }
inline int __ffs(unsigned int value) { return __builtin_ffs(static_cast<int>(value)); }
inline int __popc(unsigned int value) { return __builtin_popcount(value); }
inline unsigned int __float_as_uint(float value) { unsigned int bits; std::memcpy(&bits, &value, 4); return bits; }
inline float __uint_as_float(unsigned int bits) { float value; std::memcpy(&value, &bits, 4); return value; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline int __float2int_rd(float value) { return static_cast<int>(std::floor(value)); }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
    return static_cast<unsigned int>(((static_cast<std::uint64_t>(high) << 32) | low) >> (shift & 31));
}
inline float half_on_host(unsigned short bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
