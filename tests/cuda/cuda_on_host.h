// What the files of cuda/ need of CUDA, on the host and for tests only: compiled as plain C++ with
// -DDENDNORM_CUDA_ON_HOST and this folder's host/ on the include path, a kernel's own source runs here.
//
// One fiber stands for one thread of a block, so the order in which threads go on is ours to choose (set_order) and a
// thread that never reaches a barrier is a report, not a hang. Stricter than a device where a device would let an
// error pass: see Error. It has the device functions that cuda/launch.h allows and no others, by the rules of the CUDA
// C++ Programming Guide.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static_assert(false, "shared memory is dynamic here, so that its exact size is known");

// ---- Vector types ----

struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// ---- The runtime ----

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidResourceHandle = 400,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize,
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;

const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream);

namespace cuda_on_host {

// A kernel did what a device need not forgive: a barrier or a warp's exchange that some of its threads do not reach
// (they returned, or wait elsewhere), a lane outside its own mask, a shuffle from a lane outside the mask. The message
// names kernel, block and thread.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Device {
  int multiprocessors = 132;
  int shared_per_block = 48 << 10;         // what a launch may ask for without cudaFuncSetAttribute
  int shared_per_block_optin = 227 << 10;  // and with it
  int l2_bytes = 50 << 20;
};
Device& device();

// Blocks, and the threads of a block, go on in an order that this number decides.
void set_order(std::uint64_t seed);
// Kernels launched since the start, so that a test can tell that its own ran; and what was asked of the device or told
// to it beside them.
std::uint64_t launches();
std::uint64_t questions();

// What a stream does with its work. Without a queue it is done where it is given, whatever the stream.
using Work = std::function<void()>;
using Queue = cudaError_t (*)(cudaStream_t stream, Work work);
void set_queue(Queue queue);
cudaError_t enqueue(cudaStream_t stream, Work work);
// The device of this thread.
int& current_device();

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream, Work body);
cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...)
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  return launch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream,
                [kernel, parameters = std::tuple<Parameters...>(arguments...)] { std::apply(kernel, parameters); });
}

// ---- Inside a kernel ----

uint3 thread_index();
uint3 block_index();
dim3 block_size();
dim3 grid_size();
std::byte* shared();  // the block's dynamic shared memory: exactly as many bytes as the launch asked for

enum class Exchange { kSync, kShuffle, kBallot };
// All lanes of `mask` meet here. `value` and `from` are this lane's contribution and the lane that it reads.
std::uint64_t exchange(Exchange what, unsigned mask, std::uint64_t value, int from, std::source_location where);
// All threads of the block meet here.
void barrier(std::source_location where);
// What this thread has under way: it is done when the thread waits for it, as late as a device may.
struct Copy {
  uint4* to;
  const uint4* from;
};
void copy_later(const Copy& copy);
bool next_copy(Copy* copy);
[[noreturn]] void refuse(const std::string& what, std::source_location where);

template <class T>
std::uint64_t to_word(T value) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  return word;
}
template <class T>
T from_word(std::uint64_t word) {
  T value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}
template <class T>
T shuffle(unsigned mask, T value, int from, std::source_location where) {
  return from_word<T>(exchange(Exchange::kShuffle, mask, to_word(value), from, where));
}
int lane();

// old = *at; *at = next(old); as one step, which orders nothing else: there are no fences.
template <class T, class Next>
T atomic(T* at, Next next) {
  T old = __atomic_load_n(at, __ATOMIC_RELAXED), wanted;
  do {
    wanted = next(old);
  } while (!__atomic_compare_exchange_n(at, &old, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

template <class T>
concept AtomicInteger = std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

}  // namespace cuda_on_host

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cuda_on_host::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}

#define threadIdx cuda_on_host::thread_index()
#define blockIdx cuda_on_host::block_index()
#define blockDim cuda_on_host::block_size()
#define gridDim cuda_on_host::grid_size()

// ---- Barriers ----

using DendnormWhere = std::source_location;

inline void __syncthreads(DendnormWhere where = DendnormWhere::current()) { cuda_on_host::barrier(where); }
inline void __syncwarp(unsigned mask = 0xffffffffu, DendnormWhere where = DendnormWhere::current()) {
  cuda_on_host::exchange(cuda_on_host::Exchange::kSync, mask, 0, -1, where);
}

// ---- Exchanges within a warp ----

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, DendnormWhere where = DendnormWhere::current()) {
  const int base = cuda_on_host::lane() & -width;
  return cuda_on_host::shuffle(mask, value, base + (from & (width - 1)), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, DendnormWhere where = DendnormWhere::current()) {
  const int lane = cuda_on_host::lane(), from = lane ^ bits;
  return cuda_on_host::shuffle(mask, value, from / width > lane / width ? lane : from, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32, DendnormWhere where = DendnormWhere::current()) {
  const int lane = cuda_on_host::lane(), from = lane + by;
  return cuda_on_host::shuffle(mask, value, from / width != lane / width ? lane : from, where);
}
inline unsigned __ballot_sync(unsigned mask, int flag, DendnormWhere where = DendnormWhere::current()) {
  return static_cast<unsigned>(cuda_on_host::exchange(cuda_on_host::Exchange::kBallot, mask, flag != 0, -1, where));
}

// ---- Atomics: on integers alone, for sums of floating-point numbers must not depend on an order ----

template <cuda_on_host::AtomicInteger T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [&](T old) { return static_cast<T>(old + value); });
}
template <cuda_on_host::AtomicInteger T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return cuda_on_host::atomic(at, [&](T old) { return old > value ? old : value; });
}

// ---- Loads and arithmetic ----

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int __popc(unsigned x) { return std::popcount(x); }

// ---- What cuda/launch.h declares ----

namespace dendnorm::cuda {

inline cudaError_t allow_shared_memory(const void* kernel);

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(cuda_on_host::shared());
}

inline void copy_ahead(std::byte* to, const std::byte* from) {
  cuda_on_host::copy_later({reinterpret_cast<uint4*>(to), reinterpret_cast<const uint4*>(from)});
}
inline void wait_for_copies() {
  cuda_on_host::Copy copy;
  while (cuda_on_host::next_copy(&copy)) *copy.to = *copy.from;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                          const Arguments&... arguments) {
  if (shared > 48 * 1024) {
    const auto error = allow_shared_memory(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  return cuda_on_host::launch(kernel, grid, block, shared, stream, arguments...);
}

}  // namespace dendnorm::cuda
