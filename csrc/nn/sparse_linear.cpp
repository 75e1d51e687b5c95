// The layer: torch::nn::Linear with few connections and a dendritic normalisation.
#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <c10/core/DefaultDtype.h>
#include <c10/util/Exception.h>

#include "nn/checks.h"
#include "nn/dendnorm.h"
#include "nn/layer.h"
#include "nn/move.h"
#include "ops/call.h"
#include "ops/convert.h"

namespace dendnorm::nn {
namespace {

using at::Tensor;

torch::Dtype checked_dtype(const std::optional<torch::Dtype>& dtype) {
  if (!dtype.has_value()) {
    return c10::get_default_dtype_as_scalartype() == torch::kDouble ? torch::kDouble : torch::kFloat;
  }
  TORCH_CHECK_TYPE(*dtype == torch::kFloat || *dtype == torch::kDouble, "dtype must be float32 or float64, got ",
                   *dtype, "; a float32 layer takes bfloat16 and float16 inputs as they are");
  return *dtype;
}

// As Python draws one: the two agree after torch::manual_seed.
int64_t checked_seed(const std::optional<int64_t>& seed) {
  if (!seed.has_value()) return at::randint(INT64_MAX, {}, torch::kLong).item<int64_t>();
  TORCH_CHECK_VALUE(*seed >= 0, "seed must be in [0, 2^63), got ", *seed);
  return *seed;
}

SparseLinearOptions checked(SparseLinearOptions options) {
  const int64_t positions =
      checked_size("in_features", options.in_features()) * checked_size("out_features", options.out_features());
  options.nnz(counted(options.density(), options.nnz(), positions)).density(std::nullopt);
  TORCH_CHECK_VALUE(!options.device().is_meta(), "device must have values, got meta");
  return options.dtype(checked_dtype(options.dtype()));
}

}  // namespace

SparseLinearOptions::SparseLinearOptions(int64_t in_features, int64_t out_features)
    : in_features_(in_features), out_features_(out_features) {}

SparseLinearImpl::SparseLinearImpl(int64_t in_features, int64_t out_features, double density)
    : SparseLinearImpl(SparseLinearOptions(in_features, out_features).density(density)) {}

SparseLinearImpl::SparseLinearImpl(SparseLinearOptions options_) : options(checked(std::move(options_))) {
  Norm chosen = options.norm().resolve();
  const int64_t seed = checked_seed(options.seed());
  allocate();
  chosen->initialise(*this);
  adopt(chosen);
  draw(seed);
}

SparseLinearImpl::SparseLinearImpl(SparseLinearOptions options_, Unwritten) : options(checked(std::move(options_))) {
  allocate();
}

void SparseLinearImpl::allocate() {
  const auto values = torch::TensorOptions().device(options.device()).dtype(*options.dtype());
  const auto indices = values.dtype(torch::kInt);
  const int64_t n = options.in_features(), m = options.out_features(), nnz = *options.nnz();
  weight = register_parameter("weight", at::empty({nnz}, values));
  bias = options.bias() ? register_parameter("bias", at::zeros({m}, values)) : Tensor();
  ccol_indices = register_buffer("ccol_indices", at::zeros({n + 1}, indices));
  row_indices = register_buffer("row_indices", at::zeros({nnz}, indices));
  // The row view follows from the column view, so only the latter is saved.
  crow_indices = at::zeros({m + 1}, indices);
  col_indices = at::zeros({nnz}, indices);
  perm = at::zeros({nnz}, indices);
}

// The first layer that takes a norm registers it: LibTorch lists what is registered twice twice, and an optimizer would
// step it twice.
void SparseLinearImpl::adopt(const Norm& chosen) {
  norm = chosen;
  if (norm->registered_) return;
  norm->registered_ = true;
  register_module("norm", norm);
}

void SparseLinearImpl::draw(int64_t seed) {
  torch::NoGradGuard no_grad;
  const int64_t m = options.out_features();
  // On the CPU: the bits are the same everywhere, and it is done once.
  const Tensor none = at::zeros({options.in_features() + 1}, torch::kInt);
  const Tensor keys = ops::call_empty_positions(none, none.slice(0, 0, 0), m, nnz(), seed, 0, 0);
  const auto [ccol, row] = ops::call_pattern_of_keys(keys, m, options.in_features());
  write_pattern(ccol, row);
  const double degree = static_cast<double>(nnz()) / static_cast<double>(options.out_features());
  weight.copy_(
      ops::call_counter_normal(nnz(), seed, 0, 0, weight.scalar_type(), torch::kCPU).mul_(norm->deviation(degree)));
  if (bias.defined()) bias.zero_();
}

void SparseLinearImpl::reset_parameters(std::optional<int64_t> seed) {
  const int64_t checked = checked_seed(seed);
  norm->reset_parameters();
  draw(checked);
}

void SparseLinearImpl::reset() { reset_parameters(); }

std::shared_ptr<torch::nn::Module> SparseLinearImpl::clone(const std::optional<torch::Device>& device) const {
  const std::shared_ptr<SparseLinearImpl> copy(new SparseLinearImpl(options_of_copy(device), Unwritten{}));
  copy->copy_from(*this, device);
  return copy;
}

SparseLinearOptions SparseLinearImpl::options_of_copy(const std::optional<torch::Device>& device) const {
  auto fresh = options;
  return fresh.device(device.value_or(weight.device())).dtype(weight.scalar_type());
}

void SparseLinearImpl::copy_from(const SparseLinearImpl& layer, const std::optional<torch::Device>& device) {
  torch::NoGradGuard no_grad;
  adopt(Norm(std::dynamic_pointer_cast<NormImpl>(layer.norm->clone(device))));
  weight.copy_(layer.weight);
  weight.requires_grad_(layer.weight.requires_grad());
  if (bias.defined()) {
    bias.copy_(layer.bias);
    bias.requires_grad_(layer.bias.requires_grad());
  }
  write_pattern(layer.ccol_indices, layer.row_indices);
  train(layer.is_training());
}

Tensor SparseLinearImpl::forward(const Tensor& input) {
  return ops::call_sparse_linear(input, weight, bias, norm->excitability, pattern_of(*this), norm_of(*this));
}

Tensor SparseLinearImpl::effective_weight() const {
  return ops::call_effective_weight(weight, norm->excitability, pattern_of(*this), norm_of(*this));
}

Edges SparseLinearImpl::edges() const {
  const Tensor columns = at::arange(options.in_features(), ccol_indices.options().dtype(torch::kLong));
  return {row_indices.to(torch::kLong), at::repeat_interleave(columns, out_degrees(), 0, nnz())};
}
Tensor SparseLinearImpl::in_degrees() const { return crow_indices.diff().to(torch::kLong); }
Tensor SparseLinearImpl::out_degrees() const { return ccol_indices.diff().to(torch::kLong); }

double SparseLinearImpl::density() const {
  return static_cast<double>(nnz()) / static_cast<double>(options.in_features() * options.out_features());
}

torch::nn::Linear SparseLinearImpl::to_dense() const {
  torch::NoGradGuard no_grad;
  auto linear = undrawn<torch::nn::Linear>(
      torch::nn::LinearOptions(options.in_features(), options.out_features()).bias(bias.defined()));
  linear->to(weight.device(), weight.scalar_type());
  const auto [row, col] = edges();
  linear->weight.zero_().index_put_({row, col}, effective_weight());
  if (bias.defined()) linear->bias.copy_(bias);
  linear->train(is_training());
  return linear;
}

Tensor SparseLinearImpl::to_sparse_csr() const {
  torch::NoGradGuard no_grad;
  return at::sparse_csr_tensor(
      crow_indices.clone(), col_indices.clone(), effective_weight().index({perm.to(torch::kLong)}),
      {options.out_features(), options.in_features()}, weight.options().layout(at::kSparseCsr));
}

void SparseLinearImpl::check_pattern(const Tensor& ccol, const Tensor& row) const {
  for (const auto& [name, tensor] : {std::pair("ccol_indices", &ccol), std::pair("row_indices", &row)}) {
    TORCH_CHECK_VALUE(tensor->defined(), name, " must be an int32 tensor of one dimension, got none");
    TORCH_CHECK_VALUE(tensor->scalar_type() == torch::kInt && tensor->dim() == 1, name,
                      " must be an int32 tensor of one dimension, got ", tensor->scalar_type(), " of shape ",
                      tensor->sizes());
  }
  TORCH_CHECK_VALUE(row.numel() == nnz(), "row_indices must have ", nnz(),
                    " entries, as many as the layer has connections, got ", row.numel(),
                    "; build the layer with nnz=", row.numel());
  ops::call_check_view(ccol, row, options.in_features(), options.out_features(), "ccol_indices", "row_indices");
}

void SparseLinearImpl::write_pattern(const Tensor& ccol, const Tensor& row) {
  const auto [crow, col, order] = ops::transposed(ccol, row, options.out_features());
  write_views(ccol, row, crow, col, order);
}

void SparseLinearImpl::write_views(const Tensor& ccol, const Tensor& row, const Tensor& crow, const Tensor& col,
                                   const Tensor& order) {
  torch::NoGradGuard no_grad;
  ccol_indices.copy_(ccol);
  row_indices.copy_(row);
  crow_indices.copy_(crow);
  col_indices.copy_(col);
  perm.copy_(order);
}

void SparseLinearImpl::move(const std::optional<torch::Device>& device, const std::optional<torch::Dtype>& dtype,
                            bool non_blocking) {
  if (dtype.has_value()) value_dtype(*dtype);  // refuses before anything has changed
  move_values(weight, device, dtype, non_blocking);
  move_values(bias, device, dtype, non_blocking);
  if (device.has_value()) {
    for (Tensor* indices : {&ccol_indices, &row_indices}) indices->set_data(indices->to(*device, non_blocking));
    for (Tensor* indices : {&crow_indices, &col_indices, &perm}) *indices = indices->to(*device, non_blocking);
  }
  options.device(weight.device()).dtype(weight.scalar_type());
}

void SparseLinearImpl::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  move(device, dtype, non_blocking);
  norm->to(device, dtype, non_blocking);
}
void SparseLinearImpl::to(torch::Dtype dtype, bool non_blocking) {
  move({}, dtype, non_blocking);
  norm->to(dtype, non_blocking);
}
void SparseLinearImpl::to(torch::Device device, bool non_blocking) {
  move(device, {}, non_blocking);
  norm->to(device, non_blocking);
}

void SparseLinearImpl::pretty_print(std::ostream& stream) const {
  const auto precision = stream.precision(3);
  stream << std::boolalpha << "dendnorm::nn::SparseLinear(in_features=" << options.in_features()
         << ", out_features=" << options.out_features() << ", bias=" << bias.defined() << ", nnz=" << nnz()
         << ", density=" << density() << ", norm=" << norm->name() << ")";
  stream.precision(precision);
}

}  // namespace dendnorm::nn
