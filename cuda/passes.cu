// The forward pass and the pass over the columns: what is packed, and which kernels are launched.
#include "cuda/choose.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/product.h"
#include "cuda/workspace.h"

namespace dendnorm::cuda {
namespace {

int element_of(Type type) {
  switch (type) {
    case Type::kFloat64: return 8;
    case Type::kFloat32: return 4;
    default: return 2;
  }
}

// Activations with their strides in bytes.
struct Strided {
  std::byte* data;
  std::int64_t neuron, sample;
};

Strided strided(const Activations& a) {
  const std::int64_t element = element_of(a.type), stride = a.stride * element;
  return {static_cast<std::byte*>(a.data), a.feature_major ? stride : element, a.feature_major ? element : stride};
}

// Whether the gathering kernels can read activations where they are: whole aligned 16-byte pieces of samples, and a
// pitch that they hold in 32 bits.
bool is_packed(const Activations& a, std::int64_t samples) {
  const std::int64_t element = element_of(a.type);
  return a.feature_major && samples * element % 16 == 0 && a.stride * element % 16 == 0 && a.stride >= samples &&
         a.stride * element <= 0xffffffff && reinterpret_cast<std::uintptr_t>(a.data) % 16 == 0;
}

std::int64_t pitch_of(std::int64_t samples, int element) { return divided_up(samples * element, 16) * 16; }

// Where the gathering kernels read a matrix of activations, and how it gets there.
struct Packed {
  const std::byte* data = nullptr;
  std::int64_t pitch = 0;
  Packing packing;
};

Packed packed(const Activations& a, std::int64_t samples, std::int64_t neurons, Workspace& workspace) {
  const Strided from = strided(a);
  if (is_packed(a, samples)) return {from.data, from.neuron, {}};
  const std::int64_t pitch = pitch_of(samples, element_of(a.type));
  std::byte* to = workspace.take<std::byte>(neurons * pitch);
  return {to, pitch, {from.data, from.neuron, from.sample, neurons, to, pitch}};
}

// Sums over the segments of a view, whose results go to y; what they are sums of is set by the caller.
template <class T>
Product<T> product_of(std::int64_t samples, std::int64_t segments, std::int64_t neurons, const View& view,
                      const T* values, const Strided& y) {
  Product<T> p{};
  p.samples = static_cast<std::uint32_t>(samples);
  p.segments = static_cast<std::uint32_t>(segments);
  p.neurons = static_cast<std::uint32_t>(neurons);
  p.view = view;
  p.values = values;
  p.y = y.data;
  p.y_neuron = y.neuron;
  p.y_sample = y.sample;
  return p;
}

// ---- Y = X W^T + bias ----

template <class T>
struct ForwardPlan {
  ProductShape shape;
  ProductChoice choice;
  bool permute;
  Packed x;
  T* values = nullptr;
  std::size_t bytes;
};

bool is_empty(std::int64_t samples, std::int64_t neurons) { return samples == 0 || neurons == 0; }

template <class T>
ForwardPlan<T> plan_forward(const Forward<T>& f, const Device& device) {
  ForwardPlan<T> plan;
  Workspace workspace(f.workspace);
  plan.shape = {f.samples,
                f.outputs,
                f.inputs,
                f.connections,
                element_of(f.x.type),
                sizeof(T),
                is_packed(f.x, f.samples),
                f.rows.perm != nullptr};
  plan.choice = choose_product(plan.shape, device);
  plan.permute = plan.shape.permuted && permutes_values(plan.shape, plan.choice.lanes);
  if (!plan.choice.slab) plan.x = packed(f.x, f.samples, f.inputs, workspace);
  if (plan.permute) plan.values = workspace.take<T>(f.connections);
  plan.bytes = workspace.bytes();
  return plan;
}

// ---- One pass over the columns ----

template <class T>
struct ColumnsPlan {
  ProductChoice choice;
  bool gathers;  // anything that reads packed dY
  bool fused;
  Packed dy, x;
  std::int64_t part_count;
  T* parts;  // of the gradient, where it is fused
  std::size_t bytes;
};

template <class T>
ColumnsPlan<T> plan_columns(const Columns<T>& c, const Device& device) {
  ColumnsPlan<T> plan{};
  Workspace workspace(c.workspace);
  const bool gradient = c.gradient != nullptr && c.dense_gradient == nullptr, product = c.dx.data != nullptr;
  const bool sums = c.bias_gradient != nullptr && (c.dy.feature_major || c.samples > kFewSamples);
  const ProductShape shape{c.samples,
                           c.inputs,
                           c.outputs,
                           c.connections,
                           element_of(c.dy.type),
                           sizeof(T),
                           gradient || sums || is_packed(c.dy, c.samples)};
  if (product && !is_empty(c.samples, c.inputs)) {
    ColumnsChoice both;
    if (gradient) {
      both = choose_columns(shape, device);
    } else {
      both.product = choose_product(shape, device);
    }
    plan.choice = both.product;
    plan.fused = both.fused;
  }
  plan.gathers = gradient || sums || (product && !plan.choice.slab);
  if (plan.gathers) plan.dy = packed(c.dy, c.samples, c.outputs, workspace);
  if (gradient) plan.x = packed(c.x, c.samples, c.inputs, workspace);
  if (plan.fused) {
    plan.part_count = gradient_parts(shape, plan.choice);
    plan.parts = workspace.take<T>(plan.part_count * c.connections);
  }
  plan.bytes = workspace.bytes();
  return plan;
}

}  // namespace

std::int64_t dot_parts(std::int64_t connections) { return dot_part_count(connections); }

template <class T>
std::size_t forward_workspace(const Forward<T>& f, const Device& device) {
  return is_empty(f.samples, f.outputs) ? 0 : plan_forward(f, device).bytes;
}

template <class T>
cudaError_t forward(const Forward<T>& f, const Device& device, cudaStream_t stream) {
  if (is_empty(f.samples, f.outputs)) return cudaSuccess;
  const ForwardPlan<T> plan = plan_forward(f, device);
  const Strided x = strided(f.x), y = strided(f.y);
  Product<T> p = product_of(f.samples, f.outputs, f.inputs, f.rows, f.values, y);
  p.x = plan.choice.slab ? x.data : plan.x.data;
  p.x_neuron = plan.choice.slab ? x.neuron : plan.x.pitch;
  p.x_sample = x.sample;
  p.packed = plan.shape.packed || !plan.choice.slab;
  p.row_factors = f.factors;
  p.bias = f.bias;
  if (plan.permute) {
    DENDNORM_CUDA_TRY(launch_permute(f.values, f.rows.perm, f.connections, plan.values, stream));
    p.values = plan.values;
    p.view.perm = nullptr;
  }
  DENDNORM_CUDA_TRY(
      launch_prepare(Preparation<T>{f.samples, {plan.x.packing, {}}, f.counted, f.outputs, {}}, f.x.type, stream));
  return launch_product(p, plan.choice, f.x.type, stream);
}

template <class T>
std::size_t columns_workspace(const Columns<T>& c, const Device& device) {
  return plan_columns(c, device).bytes;
}

template <class T>
cudaError_t columns(const Columns<T>& c, const Device& device, cudaStream_t stream) {
  const ColumnsPlan<T> plan = plan_columns(c, device);
  const Strided dy = strided(c.dy), dx = strided(c.dx);
  Preparation<T> preparation{c.samples, {plan.dy.packing, plan.x.packing}, c.counted, c.outputs, {}};
  const bool few = !c.dy.feature_major && c.samples <= kFewSamples;
  if (few && c.bias_gradient != nullptr) preparation.sums = {dy.data, dy.sample, c.outputs, c.bias_gradient};
  DENDNORM_CUDA_TRY(launch_prepare(preparation, c.dy.type, stream));
  if (c.bias_gradient != nullptr && !few) {
    DENDNORM_CUDA_TRY(
        launch_sums(plan.dy.data, plan.dy.pitch, c.samples, c.outputs, c.dy.type, c.bias_gradient, stream));
  }
  if (c.dx.data != nullptr && !is_empty(c.samples, c.inputs)) {
    Product<T> p = product_of(c.samples, c.inputs, c.outputs, c.columns, c.values, dx);
    p.x = plan.gathers ? plan.dy.data : dy.data;
    p.x_neuron = plan.gathers ? plan.dy.pitch : dy.neuron;
    p.x_sample = plan.gathers ? element_of(c.dy.type) : dy.sample;
    p.packed = plan.gathers || is_packed(c.dy, c.samples);
    p.entry_factors = c.factors;
    if (plan.fused) {
      const SharedLoads<T> loads{plan.x.data, plan.x.pitch, static_cast<std::uint32_t>(c.connections), plan.parts};
      DENDNORM_CUDA_TRY(launch_fused(p, loads, plan.choice, c.dy.type, stream));
    } else {
      DENDNORM_CUDA_TRY(launch_product(p, plan.choice, c.dy.type, stream));
    }
  }
  if (c.gradient == nullptr) return cudaSuccess;
  Sampled<T> s{};
  s.samples = static_cast<std::uint32_t>(c.samples);
  s.segments = static_cast<std::uint32_t>(c.inputs);
  s.connections = static_cast<std::uint32_t>(c.connections);
  s.dy = plan.dy.data;
  s.x = plan.x.data;
  s.dy_neuron = plan.dy.pitch;
  s.x_neuron = plan.x.pitch;
  s.view = c.columns;
  s.values = c.values;
  s.finish = c.finish ? c.factors : nullptr;
  s.dot_weights = c.dot_weights;
  s.dots = c.dots;
  s.gradient = c.gradient;
  if (c.dense_gradient != nullptr) return launch_gathered(s, c.dense_gradient, c.outputs, stream);
  if (plan.fused) return launch_added(s, plan.parts, static_cast<std::uint32_t>(plan.part_count), stream);
  return launch_sampled(s, c.dy.type, stream);
}

#define DENDNORM_INSTANTIATE(T)                                                 \
  template std::size_t forward_workspace(const Forward<T>&, const Device&);     \
  template cudaError_t forward(const Forward<T>&, const Device&, cudaStream_t); \
  template std::size_t columns_workspace(const Columns<T>&, const Device&);     \
  template cudaError_t columns(const Columns<T>&, const Device&, cudaStream_t);
DENDNORM_INSTANTIATE(float)
DENDNORM_INSTANTIATE(double)
#undef DENDNORM_INSTANTIATE

}  // namespace dendnorm::cuda
