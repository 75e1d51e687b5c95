// The stand-in itself: that it computes what a device computes, and that it refuses what a device may not forgive.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda_on_host.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;

void add_up(const int* values, int n, int* sums) {
  int* warps = reinterpret_cast<int*>(cuda_on_host::shared());
  int sum = 0;
  for (unsigned k = threadIdx.x; k < static_cast<unsigned>(n); k += blockDim.x) sum += values[k] * (1 + blockIdx.x);
  for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(kAll, sum, by);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0;
    for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kAll, sum, bits);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  }
}

TEST(Host, AddsUpInAnyOrder) {
  std::vector<int> values(1000);
  for (int k = 0; k < 1000; ++k) values[k] = k;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    cuda_on_host::set_order(seed);
    std::vector<int> sums(7, -1);
    ASSERT_EQ(cuda_on_host::launch(add_up, 7, 256, 8 * sizeof(int), nullptr, values.data(), 1000, sums.data()),
              cudaSuccess);
    for (int block = 0; block < 7; ++block) EXPECT_EQ(sums[block], 499500 * (1 + block));
  }
}

void exchanges(int* out) {
  const int lane = static_cast<int>(threadIdx.x), half = lane / 16;
  const unsigned mask = half == 0 ? 0xffffu : 0xffff0000u;
  int* mine = out + 6 * lane;
  mine[0] = __shfl_sync(kAll, lane, 5);
  mine[1] = __shfl_sync(kAll, lane, 3, 8);
  mine[2] = __shfl_down_sync(kAll, lane, 2, 16);
  mine[3] = __shfl_xor_sync(kAll, lane, 8);
  mine[4] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  // Each half of the warp by itself.
  mine[5] = static_cast<int>(__ballot_sync(mask, lane % 2 == half));
}

TEST(Host, ExchangesWithinAWarp) {
  std::vector<int> out(6 * 32);
  ASSERT_EQ(cuda_on_host::launch(exchanges, 1, 32, 0, nullptr, out.data()), cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) {
    const std::vector<int> got(out.begin() + 6 * lane, out.begin() + 6 * lane + 6);
    const int down = lane % 16 > 13 ? lane : lane + 2, multiples = 0x49249249;
    const int votes = static_cast<int>(lane < 16 ? 0x5555u : 0xaaaa0000u);
    const std::vector<int> want{5, lane / 8 * 8 + 3, down, lane ^ 8, multiples, votes};
    EXPECT_EQ(got, want) << "lane " << lane;
  }
}

void counts(unsigned* sum, unsigned long long* most) {
  atomicAdd(sum, threadIdx.x);
  atomicMax(most, 100 * blockIdx.x + threadIdx.x);
}

TEST(Host, CountsAtomically) {
  unsigned sum = 0;
  unsigned long long most = 0;
  ASSERT_EQ(cuda_on_host::launch(counts, 3, 64, 0, nullptr, &sum, &most), cudaSuccess);
  EXPECT_EQ(sum, 3U * 64 * 63 / 2);
  EXPECT_EQ(most, 263U);
}

// ---- What is refused ----

template <class Kernel>
std::string refusal(Kernel kernel, unsigned threads = 64) {
  try {
    cuda_on_host::launch(+kernel, 2, threads, 64, nullptr);
  } catch (const cuda_on_host::Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

void expect_refused(const std::string& text, const std::string& reason) {
  EXPECT_NE(text.find(reason), std::string::npos) << text;
  EXPECT_NE(text.find("block ("), std::string::npos) << text;
  EXPECT_NE(text.find("thread ("), std::string::npos) << text;
}

TEST(Refuses, ABarrierThatAThreadLeftBefore) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    cuda_on_host::set_order(seed);
    const std::string text = refusal([] {
      if (threadIdx.x == 17) return;
      __syncthreads();
    });
    EXPECT_TRUE(text.find("has returned") != std::string::npos || text.find("it returned") != std::string::npos)
        << text;
  }
}

TEST(Refuses, ThreadsAtDifferentBarriers) {
  expect_refused(refusal([] {
                   if (threadIdx.x < 32) {
                     __syncthreads();
                   } else {
                     __syncthreads();
                   }
                 }),
                 "another barrier");
}

TEST(Refuses, AShuffleThatOnlySomeLanesReach) {
  const std::string text = refusal(
      [] {
        if (threadIdx.x % 2 == 0) __shfl_xor_sync(kAll, 1, 2);
        __syncthreads();
      },
      32);
  EXPECT_TRUE(text.find("a shuffle names lane") != std::string::npos || text.find("nobody") != std::string::npos ||
              text.find("returned") != std::string::npos)
      << text;
}

TEST(Refuses, LanesAtDifferentExchanges) {
  expect_refused(refusal([] {
                   if (threadIdx.x % 2 == 0) {
                     __syncwarp();
                   } else {
                     __ballot_sync(kAll, 1);
                   }
                 }),
                 "in its mask, which waits at");
}

TEST(Refuses, ALaneOutsideItsMask) {
  expect_refused(refusal([] { __shfl_xor_sync(0xffffu, 1, 1); }), "its own lane is not in the mask");
}

TEST(Refuses, AShuffleFromOutsideTheMask) {
  expect_refused(refusal([] {
                   if (threadIdx.x % 32 < 16) __shfl_xor_sync(0xffffu, 1, 16);
                 }),
                 "which is not in the mask of the shuffle");
}

TEST(Refuses, LanesThatTheBlockDoesNotHave) {
  expect_refused(refusal([] { __syncwarp(); }, 40), "which the block does not have");
}

TEST(Refuses, WarpsThatWaitForEachOther) {
  expect_refused(refusal([] {
                   if (threadIdx.x == 0) {
                     __syncthreads();
                   } else {
                     __syncwarp(threadIdx.x < 32 ? 0xfffffffeu : kAll);
                     if (threadIdx.x < 32) __syncwarp();
                   }
                 }),
                 "__syncthreads");
}

TEST(Refuses, CopiesThatNobodyWaitsFor) {
  alignas(16) static std::byte from[16];
  expect_refused(refusal([] { dendnorm::cuda::copy_ahead(cuda_on_host::shared() + threadIdx.x % 4 * 16, from); }),
                 "never waited for its copies");
}

TEST(Refuses, AndGoesOnWithTheNextLaunch) {
  refusal([] {
    if (threadIdx.x == 3) __syncthreads();
  });
  int sum = 0;
  const std::vector<int> values(10, 1);
  ASSERT_EQ(cuda_on_host::launch(add_up, 1, 64, 8, nullptr, values.data(), 10, &sum), cudaSuccess);
  EXPECT_EQ(sum, 10);
}

// What is copied ahead is there once a thread has waited, and not before.
void copies(const std::byte* from, unsigned* early, unsigned* late) {
  std::byte* own = cuda_on_host::shared() + threadIdx.x * 16;
  dendnorm::cuda::copy_ahead(own, from + threadIdx.x * 16);
  early[threadIdx.x] = reinterpret_cast<const uint4*>(own)->x;
  dendnorm::cuda::wait_for_copies();
  late[threadIdx.x] = reinterpret_cast<const uint4*>(own)->x;
}

TEST(Host, CopiesWhenAThreadWaits) {
  std::vector<uint4> from(32);
  for (unsigned k = 0; k < 32; ++k) from[k] = {k, 0, 0, 0};
  std::vector<unsigned> early(32), late(32);
  ASSERT_EQ(cuda_on_host::launch(copies, 1, 32, 512, nullptr, reinterpret_cast<const std::byte*>(from.data()),
                                 early.data(), late.data()),
            cudaSuccess);
  for (unsigned k = 0; k < 32; ++k) {
    EXPECT_EQ(early[k], 0xffffffffu);
    EXPECT_EQ(late[k], k);
  }
}

TEST(Launch, IsRefusedAsADeviceWould) {
  const auto kernel = +[] {};
  EXPECT_EQ(cuda_on_host::launch(kernel, 0, 32, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(cuda_on_host::launch(kernel, 1, 1025, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cuda_on_host::launch(kernel, dim3(1, 65536), 32, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cuda_on_host::launch(kernel, 1, 32, 100 << 10, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 300 << 10),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10), cudaSuccess);
  EXPECT_EQ(cuda_on_host::launch(kernel, 1, 32, 100 << 10, nullptr), cudaSuccess);
  cudaGetLastError();
}

// What failed before, somebody else's, is not the answer of a launch that succeeds; and it is left to who asks for it.
TEST(Launch, AnswersForItselfAlone) {
  const auto kernel = +[] {};
  EXPECT_EQ(cuda_on_host::launch(kernel, 0, 32, 0, nullptr), cudaErrorInvalidConfiguration);
  EXPECT_EQ(dendnorm::cuda::launch_kernel(kernel, 1, 32, 0, nullptr), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
}

// Nothing is asked of a device twice.
TEST(Launch, AllowsSharedMemoryOnceOnEachDevice) {
  const auto kernel = +[] {};
  for (const int device : {0, 1, 0}) {
    cuda_on_host::current_device() = device;
    EXPECT_EQ(dendnorm::cuda::launch_kernel(kernel, 1, 32, 100 << 10, nullptr), cudaSuccess) << device;
    const std::uint64_t before = cuda_on_host::questions();
    EXPECT_EQ(dendnorm::cuda::launch_kernel(kernel, 1, 32, 200 << 10, nullptr), cudaSuccess) << device;
    EXPECT_EQ(cuda_on_host::questions(), before);
  }
}

TEST(Launch, AsksForTheDeviceOnce) {
  dendnorm::cuda::Device device;
  for (const int index : {0, 1, 0}) {
    cuda_on_host::current_device() = index;
    ASSERT_EQ(dendnorm::cuda::current_device(&device), cudaSuccess);
    const std::uint64_t before = cuda_on_host::questions();
    device = {};
    ASSERT_EQ(dendnorm::cuda::current_device(&device), cudaSuccess);
    EXPECT_EQ(cuda_on_host::questions(), before);
    EXPECT_EQ(device.shared_bytes, 227 << 10);
  }
}

}  // namespace
