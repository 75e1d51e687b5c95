// The kernels alone, without Torch: median and least time of the forward pass and of the one pass over the columns (dX,
// dV, dbias), and of the same calls on a layer without connections, which pack, unpack and fork but multiply nothing.
// JSON lines.
//
//     kernels THREADS IN OUT BATCH DENSITY [SECONDS [batch-major|feature-major]]
//
// Activations come and go batch-major, as a model's inputs do, or feature-major, as between the layers of a chain.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/pattern.h"
#include "cpu/dispatch.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"

namespace {

using namespace dendnorm::cpu;
using i32 = std::int32_t;
using i64 = std::int64_t;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Workers that wait in a loop, as a pool's do between the regions of one step.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
  }
  ~Pool() {
    stop_ = true;
    ++turn_;
    for (std::thread& worker : workers_) worker.join();
  }
  void run(i64 items, ParallelBody body, void* context) {
    items_ = items;
    body_ = body;
    context_ = context;
    left_ = static_cast<int>(workers_.size());
    ++turn_;
    part(0);
    while (left_.load() > 0) {
    }
  }

 private:
  void part(int thread) const {
    const i64 count = static_cast<i64>(workers_.size()) + 1;
    const i64 begin = items_ * thread / count, end = items_ * (thread + 1) / count;
    if (begin < end) body_(context_, begin, end);
  }
  void work(int thread) {
    for (int seen = 0;;) {
      while (turn_.load() == seen) {
      }
      ++seen;
      if (stop_) return;
      part(thread);
      --left_;
    }
  }

  i64 items_ = 0;
  ParallelBody body_ = nullptr;
  void* context_ = nullptr;
  std::atomic<int> left_{0}, turn_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

std::unique_ptr<Pool> pool;
void run_pool(i64 items, ParallelBody body, void* context) { pool->run(items, body, context); }

struct Free {
  void operator()(void* data) const { std::free(data); }
};
template <class T>
using Array = std::unique_ptr<T[], Free>;

template <class T>
Array<T> array(i64 count) {
  const auto bytes = (static_cast<std::size_t>(count) * sizeof(T) + 64) / 64 * 64;
  Array<T> result(static_cast<T*>(std::aligned_alloc(64, bytes)));
  std::fill_n(reinterpret_cast<std::byte*>(result.get()), bytes, std::byte{0});
  return result;
}

struct Pattern {
  std::vector<i32> column_start{0}, row_index, row_start, column_index, perm;
};

Pattern pattern_of(i64 inputs, i64 outputs, double density) {
  Pattern p;
  std::mt19937 random(1);
  for (i64 j = 0; j < inputs; ++j) {
    if (density > 0) {
      std::geometric_distribution<i64> skip(density);
      for (i64 i = density < 1 ? skip(random) : 0; i < outputs; i += 1 + (density < 1 ? skip(random) : 0)) {
        p.row_index.push_back(static_cast<i32>(i));
      }
    }
    p.column_start.push_back(static_cast<i32>(p.row_index.size()));
  }
  p.row_start.resize(static_cast<std::size_t>(outputs) + 1);
  p.column_index.resize(p.row_index.size());
  p.perm.resize(p.row_index.size());
  dendnorm::transpose_pattern(p.column_start.data(), inputs, p.row_index.data(), outputs, p.row_start.data(),
                              p.column_index.data(), p.perm.data());
  return p;
}

struct Times {
  double forward, columns, least_forward, least_columns;  // medians and minima, ms
  i64 nnz;
};

Times measure(i64 inputs, i64 outputs, i64 samples, double density, int threads, double seconds, bool feature_major) {
  const Pattern p = pattern_of(inputs, outputs, density);
  const i64 nnz = static_cast<i64>(p.perm.size());
  const auto values = array<float>(nnz), gradient = array<float>(nnz), x = array<float>(inputs * samples),
             y = array<float>(outputs * samples), dy = array<float>(outputs * samples),
             dx = array<float>(inputs * samples), bias = array<float>(outputs), bias_gradient = array<float>(outputs);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (i64 k = 0; k < nnz; ++k) values[k] = normal(random);
  for (i64 k = 0; k < inputs * samples; ++k) x[k] = normal(random);
  for (i64 k = 0; k < outputs * samples; ++k) dy[k] = normal(random);

  const Threads with{run_pool, threads};
  const KernelsOf<float>& set = kernels<float>();
  const auto activations = [&](float* data, i64 neurons) {
    return dendnorm::Activations{data, feature_major ? samples : neurons, feature_major, dendnorm::Type::kFloat32};
  };
  Forward<float> f{};
  f.samples = samples;
  f.inputs = inputs;
  f.outputs = outputs;
  f.connections = nnz;
  f.x = activations(x.get(), inputs);
  f.y = activations(y.get(), outputs);
  f.rows = {p.row_start.data(), p.column_index.data(), p.perm.data()};
  f.columns = {p.column_start.data(), p.row_index.data(), nullptr};
  f.values = values.get();
  f.bias = bias.get();
  f.threads = with;
  Columns<float> c{};
  c.samples = samples;
  c.inputs = inputs;
  c.outputs = outputs;
  c.connections = nnz;
  c.dy = activations(dy.get(), outputs);
  c.x = f.x;
  c.dx = activations(dx.get(), inputs);
  c.columns = {p.column_start.data(), p.row_index.data(), nullptr};
  c.values = values.get();
  c.gradient = gradient.get();
  c.bias_gradient = bias_gradient.get();
  c.threads = with;
  const auto forward_room = array<std::byte>(static_cast<i64>(plan_forward(f, set.widths).workspace_bytes));
  const auto columns_room = array<std::byte>(static_cast<i64>(plan_columns(c, set.widths).workspace_bytes));

  std::vector<double> forward, columns;
  const double end = now() + seconds;
  while (now() < end || forward.size() < 5) {
    const double start = now();
    set.forward(f, plan_forward(f, set.widths), forward_room.get());
    const double middle = now();
    set.columns(c, plan_columns(c, set.widths), columns_room.get());
    columns.push_back(now() - middle);
    forward.push_back(middle - start);
  }
  std::sort(forward.begin(), forward.end());
  std::sort(columns.begin(), columns.end());
  return {1e3 * forward[forward.size() / 2], 1e3 * columns[columns.size() / 2], 1e3 * forward[0], 1e3 * columns[0],
          nnz};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "usage: kernels THREADS IN OUT BATCH DENSITY [SECONDS [batch-major|feature-major]]\n");
    return 2;
  }
  const int threads = std::max(1, std::atoi(argv[1]));
  const i64 inputs = std::atoll(argv[2]), outputs = std::atoll(argv[3]), samples = std::atoll(argv[4]);
  const double density = std::atof(argv[5]), seconds = argc > 6 ? std::atof(argv[6]) : 1;
  if (inputs < 1 || outputs < 1 || samples < 1 || !(density >= 0 && density <= 1)) {
    std::fprintf(stderr, "kernels: sizes must be positive and the density in [0, 1]\n");
    return 2;
  }
  const std::string layout = argc > 7 ? argv[7] : "batch-major";
  if (layout != "batch-major" && layout != "feature-major") {
    std::fprintf(stderr, "kernels: the layout must be batch-major or feature-major, got %s\n", layout.c_str());
    return 2;
  }
  const bool feature_major = layout == "feature-major";
  pool = std::make_unique<Pool>(threads);
  const Times times = measure(inputs, outputs, samples, density, threads, seconds, feature_major);
  const Times empty = measure(inputs, outputs, samples, 0, threads, seconds / 4, feature_major);
  std::printf(
      "{\"in\": %lld, \"out\": %lld, \"batch\": %lld, \"density\": %g, \"nnz\": %lld, \"threads\": %d, "
      "\"layout\": \"%s\", \"instruction_set\": \"%s\", \"forward_ms\": %.5f, \"backward_ms\": %.5f, "
      "\"least_forward_ms\": %.5f, \"least_backward_ms\": %.5f, "
      "\"empty_forward_ms\": %.5f, \"empty_backward_ms\": %.5f}\n",
      static_cast<long long>(inputs), static_cast<long long>(outputs), static_cast<long long>(samples), density,
      static_cast<long long>(times.nnz), threads, layout.c_str(), capability(), times.forward, times.columns,
      times.least_forward, times.least_columns, empty.least_forward, empty.least_columns);
  return 0;
}
