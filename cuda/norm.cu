// The normalisation and its gradient over a whole layer; the rule of one row is in core/norm.h. Compiled without fused
// multiply-adds, so that effective_weight has the bits of the CPU.
#include "cuda/choose.h"
#include "cuda/factors.cuh"
#include "cuda/kernels.h"
#include "cuda/types.cuh"

namespace dendnorm::cuda {
namespace {

constexpr std::int64_t kMeanForBlock = 512;  // from this many connections a row on, a block has it, else a warp

// The threads that share a row: a warp, or a whole block. All of them call, and all get the same bits.
template <int kSize>
struct Team {
  int rank;

  template <class Combine>
  __device__ double combine(double value, Combine with) const {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = with(value, __shfl_xor_sync(kFullMask, value, step));
    if constexpr (kSize == 32) {
      return value;
    } else {
      double* shared = shared_memory<double>();  // one for each warp
      __syncthreads();
      if (rank % 32 == 0) shared[rank / 32] = value;
      __syncthreads();
      value = shared[0];
      for (int w = 1; w < kSize / 32; ++w) value = with(value, shared[w]);
      return value;
    }
  }
  __device__ double sum(double value) const {
    return combine(value, [](double a, double b) { return a + b; });
  }
  __device__ double largest(double value) const {
    return combine(value, [](double a, double b) { return b > a ? b : a; });
  }
};

// The values of a row as core/norm.h wants them, each thread of the team with its share.
template <class T, int kSize>
struct SharedRow {
  Team<kSize> team;
  const T* values;
  const i32* perm;  // of the row
  i64 count;

  __device__ double at(i64 k) const { return values[perm[k]]; }

  template <class F>
  __device__ double sum(F of) const {
    double part = 0;
    for (i64 k = team.rank; k < count; k += kSize) part += of(at(k));
    return team.sum(part);
  }
  __device__ double largest_size() const {
    double part = 0;
    for (i64 k = team.rank; k < count; k += kSize) {
      const double size = std::fabs(at(k));
      if (size > part) part = size;
    }
    return team.largest(part);
  }
};

// The same by one warp, but added one after the other, as the CPU does.
template <class T>
struct RowInOrder : SharedRow<T, 32> {
  template <class F>
  __device__ double sum(F of) const {
    double total = 0;
    for (i64 first = 0; first < this->count; first += 32) {
      const i64 k = first + this->team.rank;
      const double mine = k < this->count ? of(this->at(k)) : 0;
      const int here = this->count - first < 32 ? static_cast<int>(this->count - first) : 32;
      for (int l = 0; l < here; ++l) total += __shfl_sync(kFullMask, mine, l);
    }
    return total;
  }
};

// A row of the layer in the hands of a team.
template <class T, int kSize>
__device__ __forceinline__ SharedRow<T, kSize> shared_row(const Layer<T>& layer, i64 row) {
  const i32 begin = layer.view.start[row];
  return {{static_cast<int>(threadIdx.x) % kSize},
          layer.values,
          layer.view.perm + begin,
          layer.view.start[row + 1] - begin};
}

template <int kSize>
__device__ __forceinline__ i64 team_row() {
  return static_cast<i64>(blockIdx.x) * (kThreads / kSize) + threadIdx.x / kSize;
}

// Where b = 0: a thread has a row.
template <class T>
__global__ void __launch_bounds__(kThreads) counted_factors_kernel(const Counted<T> counted, i64 rows) {
  const i64 row = static_cast<i64>(blockIdx.x) * kThreads + threadIdx.x;
  if (row < rows) write_counted(counted, row);
}

// Of a layer, to whoever asks for it.
template <class T>
struct Measured {
  Factor<T>* factors;
  double* inverse_d;
  Row* rows;
};

template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) measured_factors_kernel(const Layer<T> layer, const Measured<T> to) {
  const i64 row = team_row<kSize>();
  if (row >= layer.rows) return;
  const SharedRow<T, kSize> values = shared_row<T, kSize>(layer, row);
  const Row measured = measure_row(layer.norm, values.count, values);
  if (values.team.rank != 0) return;
  write_factor(layer.excitability, row, measured.inverse_d, to.factors, to.inverse_d);
  if (to.rows != nullptr) to.rows[row] = measured;
}

template <class T>
__global__ void __launch_bounds__(kThreads) effective_weight_kernel(const Layer<T> layer, T* w) {
  const i64 row = team_row<32>();
  if (row >= layer.rows) return;
  const RowInOrder<T> values{shared_row<T, 32>(layer, row)};
  const double factor = factor_of(layer.excitability.of(row), measure_row(layer.norm, values.count, values).inverse_d);
  for (i64 k = values.team.rank; k < values.count; k += 32) {
    const i32 at = values.perm[k];
    w[at] = static_cast<T>(factor * layer.values[at]);
  }
}

template <class T, int kSize>
__global__ void __launch_bounds__(kThreads)
    norm_gradient_kernel(const Layer<T> layer, const T* gradient, const Row* rows, T* dv, const RowGradients<T> de) {
  const i64 row = team_row<kSize>();
  if (row >= layer.rows) return;
  const Norm norm = layer.norm;
  const SharedRow<T, kSize> values = shared_row<T, kSize>(layer, row);
  const Row measured = rows != nullptr ? rows[row] : measure_row(norm, values.count, values);
  double pull = 0;  // with length 1 where b = 0: sum_j G_ij v_ij
  if (de.each != nullptr || de.parts != nullptr || norm.b != 0) {
    for (i64 k = values.team.rank; k < values.count; k += kSize) {
      pull += static_cast<double>(gradient[values.perm[k]]) * (values.at(k) / measured.length);
    }
    pull = values.team.sum(pull);
  }
  if (measured.inverse_d == 0) pull = 0;
  if (values.team.rank == 0) {
    const double part = excitability_gradient(measured, pull);
    if (de.each != nullptr) de.each[row] = static_cast<T>(part);
    if (de.parts != nullptr) de.parts[row] = part;
  }
  if (dv == nullptr) return;
  const double factor = factor_of(layer.excitability.of(row), measured.inverse_d);
  for (i64 k = values.team.rank; k < values.count; k += kSize) {
    const i32 at = values.perm[k];
    double g = gradient[at];
    if (norm.b != 0) g -= pulled(norm, measured, layer.values[at], pull);
    dv[at] = measured.inverse_d == 0 ? T(0) : static_cast<T>(factor * g);
  }
}

template <class T>
__global__ void __launch_bounds__(1024) total_kernel(const double* parts, i64 count, T* result) {
  const Team<1024> team{static_cast<int>(threadIdx.x)};
  double part = 0;
  for (i64 i = team.rank; i < count; i += 1024) part += parts[i];
  part = team.sum(part);
  if (team.rank == 0) *result = static_cast<T>(part);
}

// A block has a row: zeros first, then what is there.
template <class A, class T>
__global__ void __launch_bounds__(kThreads)
    dense_weight_kernel(const Layer<T> layer, const Factor<T>* factors, i64 inputs, A* dense) {
  const i64 row = blockIdx.x;
  A* to = dense + row * inputs;
  for (i64 j = threadIdx.x; j < inputs; j += kThreads) to[j] = A{};
  __syncthreads();
  const Factor<T> factor = factors != nullptr ? factors[row] : Factor<T>{1, 1};
  for (i32 k = layer.view.start[row] + static_cast<i32>(threadIdx.x); k < layer.view.start[row + 1]; k += kThreads) {
    to[layer.view.index[k]] = write_as<A>(layer.values[layer.view.perm[k]] * factor.first * factor.second);
  }
}

template <class... Parameters, class... Arguments>
cudaError_t launch_rows(void (*kernel)(Parameters...), i64 rows, i64 per_block, cudaStream_t stream,
                        const Arguments&... arguments) {
  if (rows == 0) return cudaSuccess;
  return launch_kernel(kernel, dim3(static_cast<unsigned>(divided_up(rows, per_block))), dim3(kThreads),
                       kThreads / 32 * sizeof(double), stream, arguments...);
}

template <class T>
bool has_long_rows(const Layer<T>& layer) {
  return layer.connections >= kMeanForBlock * layer.rows;
}

}  // namespace

template <class T>
cudaError_t row_factors(const Layer<T>& layer, Factor<T>* factors, double* inverse_d, Row* rows, cudaStream_t stream) {
  if (layer.norm.b == 0 && rows == nullptr) {
    const Counted<T> counted{layer.view.start, layer.excitability, layer.norm.a, factors, inverse_d};
    return launch_rows(counted_factors_kernel<T>, layer.rows, kThreads, stream, counted, layer.rows);
  }
  const Measured<T> to{factors, inverse_d, rows};
  if (has_long_rows(layer)) {
    return launch_rows(measured_factors_kernel<T, kThreads>, layer.rows, 1, stream, layer, to);
  }
  return launch_rows(measured_factors_kernel<T, 32>, layer.rows, kThreads / 32, stream, layer, to);
}

template <class T>
cudaError_t effective_weight(const Layer<T>& layer, T* w, cudaStream_t stream) {
  return launch_rows(effective_weight_kernel<T>, layer.rows, kThreads / 32, stream, layer, w);
}

template <class T>
cudaError_t norm_gradient(const Layer<T>& layer, const T* gradient, const Row* rows, T* dv, const RowGradients<T>& de,
                          cudaStream_t stream) {
  if (has_long_rows(layer)) {
    return launch_rows(norm_gradient_kernel<T, kThreads>, layer.rows, 1, stream, layer, gradient, rows, dv, de);
  }
  return launch_rows(norm_gradient_kernel<T, 32>, layer.rows, kThreads / 32, stream, layer, gradient, rows, dv, de);
}

template <class T>
cudaError_t add_parts(const double* parts, std::int64_t count, T* result, cudaStream_t stream) {
  return launch_kernel(total_kernel<T>, dim3(1), dim3(1024), 32 * sizeof(double), stream, parts, count, result);
}

template <class T>
cudaError_t dense_weight(const Layer<T>& layer, const Factor<T>* factors, std::int64_t inputs, Type type, void* dense,
                         cudaStream_t stream) {
  return with_type<T>(type, [&](auto a) {
    using A = decltype(a);
    return launch_rows(dense_weight_kernel<A, T>, layer.rows, 1, stream, layer, factors, inputs,
                       static_cast<A*>(dense));
  });
}

#define DENDNORM_INSTANTIATE(T)                                                                                        \
  template cudaError_t row_factors(const Layer<T>&, Factor<T>*, double*, Row*, cudaStream_t);                          \
  template cudaError_t effective_weight(const Layer<T>&, T*, cudaStream_t);                                            \
  template cudaError_t norm_gradient(const Layer<T>&, const T*, const Row*, T*, const RowGradients<T>&, cudaStream_t); \
  template cudaError_t add_parts(const double*, std::int64_t, T*, cudaStream_t);                                       \
  template cudaError_t dense_weight(const Layer<T>&, const Factor<T>*, std::int64_t, Type, void*, cudaStream_t);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cuda
