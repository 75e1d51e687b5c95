// Hands tensors to cuda/.
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <type_traits>

#include "cuda/choose.h"
#include "cuda/kernels.h"
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

// From which density on the products are left to cuBLAS. 1, the default, is where it makes no difference to what is
// computed: with absent connections a dense product multiplies their zeros with the activations, and 0 * inf is NaN.
// DENDNORM_CUDA_DENSE names another density, or "off", which also saves the memory of the dense matrix.
double dense_threshold() {
  static const double threshold = [] {
    const char* text = std::getenv("DENDNORM_CUDA_DENSE");
    if (text == nullptr || *text == '\0') return 1.0;
    if (std::string_view(text) == "off") return 2.0;
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    TORCH_CHECK(*end == '\0' && value > 0, "dendnorm: the environment variable DENDNORM_CUDA_DENSE must be \"off\" or ",
                "a density above 0, got \"", text, "\"");
    return value;
  }();
  return threshold;
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
// itself (`counted`), unless they are needed before it.
template <class T>
struct RowFactors {
  Tensor factor_memory, inverse_memory;
  const cuda::Factor<T>* factors = nullptr;  // null where every factor is 1, or not wanted
  const double* inverse_d = nullptr;
  cuda::Counted<T> counted;

  RowFactors(const cuda::Layer<T>& layer, const Tensor& like, bool wants_factors, bool wants_inverse, bool at_once) {
    counted.excitability = layer.excitability;
    counted.a = layer.norm.a;
    if (wants_factors && scales(layer)) {
      factor_memory = device_memory(layer.rows * sizeof(cuda::Factor<T>), like);
      counted.factors = reinterpret_cast<cuda::Factor<T>*>(bytes_of(factor_memory));
    }
    if (wants_inverse) {
      inverse_memory = double_memory(layer.rows, like);
      counted.inverse_d = inverse_memory.mutable_data_ptr<double>();
    }
    factors = counted.factors;
    inverse_d = counted.inverse_d;
    if (factors == nullptr && inverse_d == nullptr) return;
    if (layer.norm.b == 0 && !at_once) {
      counted.start = layer.view.start;
    } else {
      check_launch(cuda::row_factors(layer, counted.factors, counted.inverse_d, current_stream()));
    }
  }
};

// Whether products are left to the dense matrix product.
template <class T>
bool prefers_dense(const cuda::Layer<T>& layer, const Tensor& weight, const Tensor& activations, std::int64_t inputs) {
  return activations.scalar_type() == weight.scalar_type() && samples_of(activations) > 0 &&
         cuda::prefers_dense(inputs, layer.rows, layer.connections, dense_threshold());
}

// The effective weights as a dense (outputs, inputs) matrix.
template <class T>
Tensor dense_weight(const cuda::Layer<T>& layer, const Tensor& weight, std::int64_t inputs,
                    const cuda::Factor<T>* factors) {
  Tensor dense = at::empty({layer.rows, inputs}, weight.options());
  check_launch(cuda::dense_weight(layer, factors, inputs, dense.mutable_data_ptr<T>(), current_stream()));
  return dense;
}

template <class T>
void run_columns(cuda::Columns<T>& c, const Tensor& like) {
  const cuda::Device on = device();
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
                      const Pattern& pattern, const Norm& norm, const Tensor& output) {
    cuda::Forward<T> f{};
    f.samples = samples_of(input);
    check_samples(f.samples);
    if (output.numel() == 0) return;
    const Matrix x(input), y(output);
    const cuda::Layer<T> layer = sized_layer<T>(weight, excitability, pattern, norm);
    const bool dense = prefers_dense(layer, weight, input, input.size(-1));
    const RowFactors<T> factors(layer, weight, true, false, dense);
    if (dense) {
      const Tensor w = dense_weight(layer, weight, input.size(-1), factors.factors).t();
      Tensor to = y.tensor;
      if (bias.defined()) {
        at::addmm_out(to, bias, x.tensor, w);
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
    const cuda::Device on = device();
    const Tensor workspace = device_memory(cuda::forward_workspace(f, on), weight);
    f.workspace = bytes_of(workspace);
    check_launch(cuda::forward(f, on, current_stream()));
  }

  template <class T>
  static void backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& excitability,
                       const Pattern& pattern, const Norm& norm, const Wanted& wanted, const Gradients& gradients) {
    const cuda::Layer<T> layer = sized_layer<T>(weight, excitability, pattern, norm);
    const bool dense = prefers_dense(layer, weight, input, input.size(-1));
    const RowFactors<T> factors(layer, weight, wanted.factors(), wanted.dots(), dense && wanted.input);

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
      if (dense) {
        at::mm_out(dx.tensor, dy.tensor, dense_weight(layer, weight, c.inputs, factors.factors));
      } else {
        c.dx = dx.activations;
      }
    }
    const Tensor gradient = values_gradient(wanted, gradients, weight);
    Tensor dense_gradient;
    if (wanted.values()) {
      c.gradient = gradient.mutable_data_ptr<T>();
      if (dense) {
        dense_gradient = at::mm(x.tensor.t(), dy.tensor);
        c.dense_gradient = dense_gradient.const_data_ptr<T>();
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
    run_columns(c, weight);

    if (wanted.rows_pass()) {
      norm_gradient(layer, gradient, gradients.weight, gradients.excitability);
    } else if (wanted.dots()) {
      reduce_parts<T>(dots, gradients.excitability);
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
    norm_gradient(sized_layer<T>(weight, excitability, pattern, norm), grad, dv, de);
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
    run_columns(c, result);
  }

 private:
  template <class T>
  static void norm_gradient(const cuda::Layer<T>& layer, const Tensor& grad, const Tensor& dv, const Tensor& de) {
    Tensor parts;
    if (de.defined()) parts = double_memory(layer.rows, grad);
    check_launch(cuda::norm_gradient(layer, grad.const_data_ptr<T>(), dv.defined() ? dv.mutable_data_ptr<T>() : nullptr,
                                     de.defined() ? parts.mutable_data_ptr<double>() : nullptr, current_stream()));
    if (de.defined()) reduce_parts<T>(parts, de);
  }

  // Parts of dC/de, of rows or of a sum, to e's own shape.
  template <class T>
  static void reduce_parts(const Tensor& parts, const Tensor& gradient) {
    check_launch(cuda::excitability_gradient(parts.const_data_ptr<double>(), parts.numel(), is_per_row(gradient),
                                             gradient.mutable_data_ptr<T>(), current_stream()));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(dendnorm, CUDA, m) { LayerOps<Backend>::register_in(m); }

}  // namespace dendnorm::ops
