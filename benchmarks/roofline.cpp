// What this machine can do, measured: the rate at which random pieces of 256 bytes (a tile of 64 float samples, what
// one connection loads) come from buffers of growing size, and the peak of fused multiply-adds. JSON on standard
// output.
//
//     roofline [threads] [seconds per figure]
//
// Each thread reads a buffer of its own, as the two tiles of a batch of 128 are read. Compiled for three instruction
// sets; the widest that the processor has is used.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

constexpr std::size_t kPiece = 256;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::atomic<float> sink;  // what is computed is used, or the compiler would leave it out

using Read = float (*)(const float* buffer, const std::uint32_t* pieces, std::size_t count);
using Fma = float (*)(std::size_t rounds);
struct Set {
  const char* name;
  Read read;
  Fma fma;
  double flops_per_round;
};

float read_generic(const float* buffer, const std::uint32_t* pieces, std::size_t count) {
  float sums[64] = {};
  for (std::size_t k = 0; k < count; ++k) {
    const float* piece = buffer + pieces[k] * (kPiece / 4);
    for (int i = 0; i < 64; ++i) sums[i] += 0.5F * piece[i];
  }
  return sums[0] + sums[63];
}

float fma_generic(std::size_t rounds) {
  float sums[32];
  for (int i = 0; i < 32; ++i) sums[i] = 1 + 0.001F * static_cast<float>(i);
  for (std::size_t k = 0; k < rounds; ++k) {
    for (float& sum : sums) sum = sum * 0.999F + 1e-3F;
  }
  return sums[0] + sums[31];
}

#ifdef __x86_64__
#define FMA_LOOP(CHAINS, SET, FMA)                                                                    \
  auto factor = SET(0.999F), term = SET(1e-3F);                                                       \
  decltype(factor) sums[CHAINS];                                                                      \
  for (int i = 0; i < (CHAINS); ++i) sums[i] = SET(1 + 0.001F * static_cast<float>(i));               \
  for (std::size_t k = 0; k < rounds; ++k) {                                                          \
    _Pragma("GCC unroll 16") for (int i = 0; i < (CHAINS); ++i) sums[i] = FMA(sums[i], factor, term); \
  }                                                                                                   \
  float result = 0;                                                                                   \
  for (auto& sum : sums) result += sum[0];                                                            \
  return result;

// A piece is eight ymm, and eight sums hide the latency.
__attribute__((target("avx2,fma"))) float read_avx2(const float* buffer, const std::uint32_t* pieces,
                                                    std::size_t count) {
  const __m256 weight = _mm256_set1_ps(0.5F);
  __m256 sums[8];
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  for (std::size_t k = 0; k < count; ++k) {
    const float* piece = buffer + pieces[k] * (kPiece / 4);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] = _mm256_fmadd_ps(weight, _mm256_load_ps(piece + i * 8), sums[i]);
  }
  float result = 0;
  for (auto& sum : sums) result += sum[0];
  return result;
}

__attribute__((target("avx2,fma"))) float fma_avx2(std::size_t rounds) { FMA_LOOP(12, _mm256_set1_ps, _mm256_fmadd_ps) }

// A piece is four zmm; two pieces in flight hide the latency of the sums.
__attribute__((target("avx512f"))) float read_avx512(const float* buffer, const std::uint32_t* pieces,
                                                     std::size_t count) {
  const __m512 weight = _mm512_set1_ps(0.5F);
  __m512 sums[2][4];
  for (auto& chain : sums) {
    for (auto& sum : chain) sum = _mm512_setzero_ps();
  }
  for (std::size_t k = 0; k + 2 <= count; k += 2) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      const float* piece = buffer + pieces[k + u] * (kPiece / 4);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[u][i] = _mm512_fmadd_ps(weight, _mm512_load_ps(piece + i * 16), sums[u][i]);
    }
  }
  float result = 0;
  for (auto& chain : sums) {
    for (auto& sum : chain) result += sum[0];
  }
  return result;
}

__attribute__((target("avx512f"))) float fma_avx512(std::size_t rounds){FMA_LOOP(16, _mm512_set1_ps, _mm512_fmadd_ps)}
#endif

Set widest() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return {"avx512", read_avx512, fma_avx512, 2.0 * 16 * 16};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {"avx2", read_avx2, fma_avx2, 2.0 * 12 * 8};
  }
#endif
  return {"default", read_generic, fma_generic, 2.0 * 32};
}

// Runs body(thread) on every thread at once until `seconds` have passed; body returns the work that it did. The rate
// of all together.
template <class F>
double rate(int threads, double seconds, F body) {
  std::atomic<int> waiting{threads};
  std::atomic<bool> stop{false};
  std::vector<double> rates(static_cast<std::size_t>(threads));
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      body(t);  // brings the buffer into the caches
      --waiting;
      while (waiting.load() > 0) {
      }
      const double start = now();
      double work = 0, end = start;
      while (end - start < seconds) {
        work += body(t);
        end = now();
      }
      rates[static_cast<std::size_t>(t)] = work / (end - start);
    });
  }
  for (std::thread& thread : pool) thread.join();
  double sum = 0;
  for (const double one : rates) sum += one;
  return sum;
}

// The median of five, so that one busy moment does not count.
template <class F>
double median_rate(int threads, double seconds, F body) {
  std::vector<double> rates;
  for (int repeat = 0; repeat < 5; ++repeat) rates.push_back(rate(threads, seconds / 5, body));
  std::sort(rates.begin(), rates.end());
  return rates[2];
}

struct Buffer {
  explicit Buffer(std::size_t bytes) {
    const std::size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    data = static_cast<float*>(std::aligned_alloc(kHugePage, whole));
    if (data == nullptr) std::abort();
#ifdef __linux__
    madvise(data, whole, MADV_HUGEPAGE);
#endif
    for (std::size_t i = 0; i < bytes / 4; ++i) data[i] = 1e-3F;
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* data;
};

}  // namespace

int main(int argc, char** argv) {
  const int threads =
      argc > 1 ? std::max(1, std::atoi(argv[1])) : static_cast<int>(std::thread::hardware_concurrency());
  const double seconds = argc > 2 ? std::atof(argv[2]) : 0.5;
  const Set set = widest();
  constexpr std::size_t kLargest = std::size_t{256} << 20;
  std::vector<std::unique_ptr<Buffer>> buffers;
  for (int t = 0; t < threads; ++t) buffers.push_back(std::make_unique<Buffer>(kLargest));

  const double gflops = median_rate(threads, seconds, [&](int) {
    constexpr std::size_t kRounds = 100000;
    sink = set.fma(kRounds);
    return static_cast<double>(kRounds) * set.flops_per_round * 1e-9;
  });
  std::printf(
      "{\"threads\": %d, \"instruction_set\": \"%s\", \"fma_gflops\": %.1f, \"piece_bytes\": %zu,\n \"load\": [",
      threads, set.name, gflops, kPiece);
  const char* separator = "";
  for (const std::size_t kilobytes :
       {16, 32, 64, 128, 200, 256, 512, 768, 1024, 2048, 4096, 8192, 16384, 65536, 262144}) {
    const std::size_t pieces = kilobytes * 1024 / kPiece;
    std::vector<std::vector<std::uint32_t>> order(static_cast<std::size_t>(threads));
    for (int t = 0; t < threads; ++t) {
      std::mt19937 random(static_cast<std::uint32_t>(t));
      std::vector<std::uint32_t>& mine = order[static_cast<std::size_t>(t)];
      mine.resize(std::max<std::size_t>(8192, 2 * pieces));
      for (std::uint32_t& piece : mine) piece = static_cast<std::uint32_t>(random() % pieces);
    }
    const double gigabytes = median_rate(threads, seconds, [&](int t) {
      const std::vector<std::uint32_t>& mine = order[static_cast<std::size_t>(t)];
      sink = set.read(buffers[static_cast<std::size_t>(t)]->data, mine.data(), mine.size());
      return static_cast<double>(mine.size() * kPiece) * 1e-9;
    });
    std::printf("%s\n  {\"bytes\": %zu, \"gb_per_s\": %.1f}", separator, kilobytes * 1024, gigabytes);
    std::fflush(stdout);
    separator = ",";
  }
  std::printf("\n ]}\n");
  return 0;
}
