// Faults put in on purpose, one by name: each must end in the report that tests/cuda/CMakeLists.txt expects. So a
// checker that sees nothing is itself a failed test.
#include <cstdio>
#include <cstring>
#include <memory>

#include "cuda_on_host.h"

namespace {

// The sum of a block's values by halves; correct with `barriers`.
void sum(const int* values, int* result, bool barriers) {
  int* shared = dendnorm::cuda::shared_memory<int>();
  shared[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    if (barriers) __syncthreads();
  }
  if (threadIdx.x == 0) *result = shared[0];
}

void past_shared(int* result) {
  const int* shared = dendnorm::cuda::shared_memory<int>();
  if (shared[threadIdx.x + 1] == 7) *result = 1;
}

void past_global(const int* values, int* result) {
  if (values[threadIdx.x + 1] == 7) *result = 1;
}

void misaligned(const unsigned* values, unsigned* result) {
  const uint4 four = __ldg(reinterpret_cast<const uint4*>(values + 1));
  if (threadIdx.x == 0) *result = four.x;
}

// A warp that shares memory and only shuffles in between.
void no_warp_barrier(int* result) {
  int* shared = dendnorm::cuda::shared_memory<int>();
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  const int zero = __shfl_sync(0xffffffffu, 0, 0);
  result[threadIdx.x] = shared[(threadIdx.x + 1) % 32 + zero];
}

// Two blocks that write the same place.
void two_writers(int* result) {
  if (threadIdx.x == 0) *result = static_cast<int>(blockIdx.x);
}

// The last block to finish adds up what all wrote, and no fence says that it may: kernels have none.
void last_block(int* parts, unsigned* ticket, int* result) {
  if (threadIdx.x != 0) return;
  parts[blockIdx.x] = 1;
  if (atomicAdd(ticket, 1) != gridDim.x - 1) return;
  *result = 0;
  for (unsigned k = 0; k < gridDim.x; ++k) *result += parts[k];
}

}  // namespace

int main(int count, char** names) {
  using cuda_on_host::launch;
  if (count < 2) return 2;
  const auto is = [&](const char* name) { return std::strcmp(names[1], name) == 0; };
  const auto values = std::make_unique<int[]>(64), results = std::make_unique<int[]>(64);
  const auto words = std::make_unique<unsigned[]>(8);
  unsigned ticket = 0;
  unsigned first = 0;
  const std::size_t bytes = 64 * sizeof(int);
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    cuda_on_host::set_order(seed);
    if (is("none")) launch(sum, 2, 64, bytes, nullptr, values.get(), results.get() + seed, true);
    if (is("barrier")) launch(sum, 1, 64, bytes, nullptr, values.get(), results.get(), false);
    if (is("shared")) launch(past_shared, 1, 64, bytes, nullptr, results.get());
    if (is("global")) launch(past_global, 1, 64, 0, nullptr, values.get(), results.get());
    if (is("misaligned")) launch(misaligned, 1, 32, 0, nullptr, words.get(), &first);
    if (is("warp")) launch(no_warp_barrier, 1, 32, bytes, nullptr, results.get());
    if (is("writers")) launch(two_writers, 8, 32, 0, nullptr, results.get());
    if (is("fence")) launch(last_block, 8, 32, 0, nullptr, results.get(), &ticket, results.get() + 63);
  }
  std::puts("nothing was found");
  return 0;
}
