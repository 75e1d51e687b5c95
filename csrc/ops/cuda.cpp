// Hands tensors to cuda/.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <type_traits>

#include "cuda/choose.h"
#include "cuda/kernels.h"
#include "ops/kept_rows.h"
#include "ops/layer_ops.h"
#include "ops/on_cuda.h"

namespace dendnorm::ops {
namespace {

using at::Tensor;

cuda::Device device() {
  cuda::Device found;
  check_launch(cuda::current_device(&found));
  return found;
}

void check_samples(std::int64_t samples) {
  TORCH_CHECK(samples <= cuda::kMaxSamples, "dendnorm: the CUDA kernels take at most ", cuda::kMaxSamples,
              " samples in one call, got ", samples);
}

// Where products are left to cuBLAS: by default where every position is connected and the cost model expects it to be
// faster. Below that density absent connections are multiplied like zeros, and 0 * inf is NaN; so that is asked for by
// the environment variable DENDNORM_CUDA_DENSE: a density from which on products are dense, whatever the model says,
// "auto", which leaves all densities to the model, or "off", which also saves the memory of the dense matrices.
const cuda::DenseRule& dense_rule() {
  static const cuda::DenseRule rule = [] {
    const char* text = std::getenv("DENDNORM_CUDA_DENSE");
    if (text == nullptr || *text == '\0') return cuda::DenseRule{};
    if (std::string_view(text) == "off") return cuda::DenseRule{2, false};
    if (std::string_view(text) == "auto") return cuda::DenseRule{0, true};
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    TORCH_CHECK(*end == '\0' && value > 0, "dendnorm: the environment variable DENDNORM_CUDA_DENSE must be \"auto\", ",
                "\"off\" or a density above 0, got \"", text, "\"");
    return cuda::DenseRule{value, false};
  }();
  return rule;
}

// What cuBLAS multiplies such activations in.
cuda::Arithmetic arithmetic_of(const Tensor& activations) {
  switch (activations.scalar_type()) {
    case at::kDouble: return cuda::Arithmetic::kFloat64;
    case at::kFloat: break;
    default: return cuda::Arithmetic::kSixteenBits;
  }
  const at::Context& settings = at::globalContext();
  const bool tf32 =
      settings.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) == at::Float32Precision::TF32;
  return tf32 ? cuda::Arithmetic::kTF32 : cuda::Arithmetic::kFloat32;
}

template <class T>
cuda::Layer<T> sized_layer(const Tensor& weight, const Tensor& excitability, const Pattern& pattern, const Norm& norm) {
  auto layer = layer_of<cuda::Layer<T>, T>(weight, excitability, pattern, norm);
  layer.connections = weight.size(0);
  return layer;
}

Tensor double_memory(std::int64_t count, const Tensor& like) {
  return at::empty({count}, like.options().dtype(at::kDouble));
}

// The factors of all rows, or 1 / D of all rows, and the memory that holds them. Where b = 0 a pass works them out
// itself (`counted`), unless they are needed before it; else the rows are measured, or have been by the forward pass
// (`kept`), whose memory holds the factors behind what was measured.
template <class T>
struct RowFactors {
  Tensor memory, inverse_memory;
  const cuda::Factor<T>* factors = nullptr;  // null where every factor is 1, or not wanted
  const double* inverse_d = nullptr;
  const Row* rows = nullptr;  // null where nobody measured
  cuda::Counted<T> counted;

  RowFactors(const cuda::Layer<T>& layer, const Tensor& like, bool wants_factors, bool wants_inverse, bool at_once,
             const Tensor& kept = {}) {
    if (kept.defined()) {
      memory = kept;
      rows = reinterpret_cast<const Row*>(kept.const_data_ptr());
      factors = reinterpret_cast<const cuda::Factor<T>*>(rows + layer.rows);
      return;
    }
    const bool measures = layer.norm.b != 0;
    Row* measured = nullptr;
    if (wants_factors && scales(layer)) {
      const std::size_t before = measures ? layer.rows * sizeof(Row) : 0;
      memory = device_memory(before + layer.rows * sizeof(cuda::Factor<T>), like);
      if (measures) measured = reinterpret_cast<Row*>(bytes_of(memory));
      counted.factors = reinterpret_cast<cuda::Factor<T>*>(bytes_of(memory) + before);
    }
    if (wants_inverse) {
      inverse_memory = double_memory(layer.rows, like);
      counted.inverse_d = inverse_memory.mutable_data_ptr<double>();
    }
    counted.excitability = layer.excitability;
    counted.a = layer.norm.a;
    factors = counted.factors;
    inverse_d = counted.inverse_d;
    rows = measured;
    if (factors == nullptr && inverse_d == nullptr) return;
    if (!measures && !at_once) {
      counted.start = layer.view.start;
    } else {
      check_launch(cuda::row_factors(layer, counted.factors, counted.inverse_d, measured, current_stream()));
    }
  }
};

// Which products are left to dense matrix products.
template <class T>
cuda::DenseChoice dense_products(const cuda::Layer<T>& layer, const Tensor& activations, const cuda::Device& on) {
  return cuda::choose_dense(activations.size(-1), layer.rows, layer.connections, samples_of(activations),
                            static_cast<int>(activations.element_size()), sizeof(T), arithmetic_of(activations),
                            dense_rule(), on);
}

// The effective weights as a dense (outputs, inputs) matrix in the type of the activations.
template <class T>
Tensor dense_weight(const cuda::Layer<T>& layer, const Tensor& activations, const cuda::Factor<T>* factors) {
  const std::int64_t inputs = activations.size(-1);
  Tensor dense = at::empty({layer.rows, inputs}, activations.options());
  check_launch(
      cuda::dense_weight(layer, factors, inputs, type_of(activations), dense.mutable_data_ptr(), current_stream()));
  return dense;
}

// X^T dY in the type of the values, which 16-bit products are added up in.
template <class T>
Tensor dense_gradient(const Matrix& x, const Matrix& dy) {
  if (x.tensor.element_size() == sizeof(T)) return at::mm(x.tensor.t(), dy.tensor);
  return at::mm(x.tensor.t(), dy.tensor, at::kFloat);
}

template <class T>
void run_columns(cuda::Columns<T>& c, const Tensor& like, const cuda::Device& on) {
  const Tensor workspace = device_memory(cuda::columns_workspace(c, on), like);
  c.workspace = bytes_of(workspace);
  check_launch(cuda::columns(c, on, current_stream()));
}

struct Backend {
  // The tensors' device; and autocast, which would reach the dense products, stays out.
  struct Guard {
    c10::cuda::CUDAGuard device;
    c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::DispatchKey::AutocastCUDA};

    explicit Guard(const Tensor& tensor) : device(tensor.device()) {}
  };

  // To read them, the host would wait for the device.
  static void check_views(const char*, const Pattern&) {}

  template <class T>
  static void forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& excitability,
                      const Pattern& pattern, const Norm& norm, const Tensor& output, Tensor* kept = nullptr) {
    cuda::Forward<T> f{};
    f.samples = samples_of(input);
    check_samples(f.samples);
    if (output.numel() == 0) return;
    const Matrix x(input), y(output);
    const cuda::Layer<T> layer = sized_layer<T>(weight, excitability, pattern, norm);
    const cuda::Device on = device();
    const bool dense = dense_products(layer, input, on).forward;
    const RowFactors<T> factors(layer, weight, true, false, dense);
    if (kept != nullptr && factors.rows != nullptr) *kept = factors.memory;
    if (dense) {
      const Tensor w = dense_weight(layer, input, factors.factors).t();
      Tensor to = y.tensor;
      if (bias.defined()) {
        at::addmm_out(to, bias.to(to.scalar_type()), x.tensor, w);
      } else {
        at::mm_out(to, x.tensor, w);
      }
      return;
    }
    f.inputs = input.size(-1);
    f.outputs = output.size(-1);
    f.connections = weight.size(0);
    f.x = x.activations;
    f.y = y.activations;
    f.rows = rows_of(pattern);
    f.values = layer.values;
    f.factors = factors.factors;
    f.counted = factors.counted;
    f.bias = bias.defined() ? bias.const_data_ptr<T>() : nullptr;
    const Tensor workspace = device_memory(cuda::forward_workspace(f, on), weight);
    f.workspace = bytes_of(workspace);
    check_launch(cuda::forward(f, on, current_stream()));
  }

  template <class T>
  static void backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& excitability,
                       const Pattern& pattern, const Norm& norm, const Wanted& wanted, const Gradients& gradients,
                       const Tensor& kept = {}) {
    const cuda::Layer<T> layer = sized_layer<T>(weight, excitability, pattern, norm);
    const cuda::Device on = device();
    const cuda::DenseChoice dense = dense_products(layer, input, on);
    const RowFactors<T> factors(layer, weight, wanted.factors(), wanted.dots(), wanted.input && dense.input_gradient,
                                kept);

    const Matrix dy(grad_output), x(input);
    Matrix dx;
    cuda::Columns<T> c{};
    c.samples = samples_of(input);
    check_samples(c.samples);
    c.inputs = input.size(-1);
    c.outputs = grad_output.size(-1);
    c.connections = weight.size(0);
    c.dy = dy.activations;
    c.x = x.activations;
    c.columns = columns_of(pattern);
    c.values = layer.values;
    c.factors = factors.factors;
    c.counted = factors.counted;
    if (wanted.input) {
      dx = Matrix(gradients.input);
      if (dense.input_gradient) {
        at::mm_out(dx.tensor, dy.tensor, dense_weight(layer, input, factors.factors));
      } else {
        c.dx = dx.activations;
      }
    }
    const Tensor gradient = values_gradient(wanted, gradients, weight);
    Tensor every_position;
    if (wanted.values()) {
      c.gradient = gradient.mutable_data_ptr<T>();
      if (dense.weight_gradient) {
        every_position = dense_gradient<T>(x, dy);
        c.dense_gradient = every_position.const_data_ptr<T>();
      }
    }
    c.finish = wanted.finish();
    Tensor dots;
    if (wanted.dots()) {
      dots = double_memory(cuda::dot_parts(c.connections), weight);
      c.dot_weights = factors.inverse_d;
      c.dots = dots.mutable_data_ptr<double>();
    }
    if (wanted.bias) c.bias_gradient = gradients.bias.mutable_data_ptr<T>();
    run_columns(c, weight, on);

    if (wanted.rows_pass()) {
      norm_gradient(layer, gradient, factors.rows, gradients.weight, gradients.excitability);
    } else if (wanted.dots()) {
      add_parts<T>(dots, gradients.excitability);
    }
  }

  template <class T>
  static void effective_weight(const Tensor& weight, const Tensor& excitability, const Pattern& pattern,
                               const Norm& norm, const Tensor& result) {
    check_launch(cuda::effective_weight(sized_layer<T>(weight, excitability, pattern, norm),
                                        result.mutable_data_ptr<T>(), current_stream()));
  }

  template <class T>
  static void norm_gradient(const Tensor& grad, const Tensor& weight, const Tensor& excitability,
                            const Pattern& pattern, const Norm& norm, const Tensor& dv, const Tensor& de) {
    norm_gradient(sized_layer<T>(weight, excitability, pattern, norm), grad, nullptr, dv, de);
  }

  template <class T>
  static void sampled_product(const Tensor& rows, const Tensor& columns, const Pattern& pattern, const Tensor& result) {
    const Matrix dy(rows), x(columns);
    cuda::Columns<T> c{};
    c.samples = samples_of(columns);
    check_samples(c.samples);
    c.inputs = columns.size(-1);
    c.outputs = rows.size(-1);
    c.connections = result.size(0);
    c.dy = dy.activations;
    c.x = x.activations;
    c.columns = columns_of(pattern);
    c.gradient = result.mutable_data_ptr<T>();
    run_columns(c, result, device());
  }

 private:
  template <class T>
  static void norm_gradient(const cuda::Layer<T>& layer, const Tensor& grad, const Row* rows, const Tensor& dv,
                            const Tensor& de) {
    cuda::RowGradients<T> to;
    Tensor parts;
    if (de.defined() && is_per_row(de)) {
      to.each = de.mutable_data_ptr<T>();
    } else if (de.defined()) {
      parts = double_memory(layer.rows, grad);
      to.parts = parts.mutable_data_ptr<double>();
    }
    check_launch(cuda::norm_gradient(layer, grad.const_data_ptr<T>(), rows,
                                     dv.defined() ? dv.mutable_data_ptr<T>() : nullptr, to, current_stream()));
    if (parts.defined()) add_parts<T>(parts, de);
  }

  // Parts of dC/de to what they add up to.
  template <class T>
  static void add_parts(const Tensor& parts, const Tensor& gradient) {
    check_launch(cuda::add_parts(parts.const_data_ptr<double>(), parts.numel(), gradient.mutable_data_ptr<T>(),
                                 current_stream()));
  }
};

Tensor forward_that_keeps(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm, Tensor& rows) {
  return LayerOps<Backend>::forward(input, weight, bias, excitability, pattern, norm, &rows);
}

Tensor4 backward_with_kept(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                           const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                           std::array<bool, 4> mask, const Tensor& rows) {
  RECORD_FUNCTION("dendnorm::sparse_linear_backward", c10::ArrayRef<const c10::IValue>{});
  return LayerOps<Backend>::backward(grad_output, input, weight, excitability, pattern, norm, mask, rows);
}

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) {
  LayerOps<Backend>::register_in(m);
  keeps_on_cuda = {forward_that_keeps, backward_with_kept};
}

}  // namespace dendnorm::ops
