// The layer: torch::nn::Linear with few connections and a dendritic normalisation.
#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <c10/core/DefaultDtype.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "nn/dendnorm.h"
#include "nn/layer.h"
#include "nn/move.h"
#include "nn/pattern.h"
#include "ops/call.h"

namespace dendnorm::nn {
namespace {

using at::Tensor;

constexpr int64_t kInt32Max = 2147483647;

int64_t checked_size(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(1 <= value && value < kInt32Max, name, " must be in [1, 2^31 - 1), got ", value);
  return value;
}

// The number of connections that density or nnz asks for, among `positions`.
int64_t connections(const std::optional<double>& density, const std::optional<int64_t>& nnz, int64_t positions) {
  TORCH_CHECK_VALUE(density.has_value() || nnz.has_value(),
                    "exactly one of density and nnz must be given, got neither");
  TORCH_CHECK_VALUE(!(density.has_value() && nnz.has_value()),
                    "exactly one of density and nnz must be given, got density=", *density, " and nnz=", *nnz);
  int64_t count = nnz.value_or(0);
  if (density.has_value()) {
    TORCH_CHECK_VALUE(0 < *density && *density <= 1, "density must be in (0, 1], got ", *density);
    count = static_cast<int64_t>(std::nearbyint(*density * static_cast<double>(positions)));
  }
  TORCH_CHECK_VALUE(0 <= count && count <= positions, "nnz must be in [0, in_features * out_features] = [0, ",
                    positions, "], got ", count);
  TORCH_CHECK_VALUE(count <= kInt32Max, "nnz must be below 2^31, got ", count);
  return count;
}

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
  options.nnz(connections(options.density(), options.nnz(), positions)).density(std::nullopt);
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
  const auto [ccol, row] = pattern_of_keys(keys, m, options.in_features());
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

Edges SparseLinearImpl::edges() const { return edges_of(ccol_indices, row_indices); }
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
  check_compressed(ccol, row, options.in_features(), options.out_features(), "ccol_indices", "row_indices");
}

void SparseLinearImpl::write_pattern(const Tensor& ccol, const Tensor& row) {
  const auto [crow, col, order] = transposed(ccol, row, options.out_features());
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

// ---- From weights that are there ----

void SparseLinearImpl::fill(const Tensor& ccol, const Tensor& row, const Tensor& effective, const Tensor& given_bias) {
  torch::NoGradGuard no_grad;
  Norm chosen = options.norm().resolve();
  write_pattern(ccol, row);
  chosen->check(*this);
  const bool taken = chosen->excitability.defined();
  const auto [values, excitability] = chosen->raw_values(effective, row_indices, options.out_features());
  chosen->initialise(*this);
  adopt(chosen);
  weight.copy_(values);
  if (given_bias.defined()) bias.copy_(given_bias);
  if (excitability.defined() && !taken) chosen->excitability.copy_(excitability);
}

Tensor largest(const char* name, const Tensor& matrix, std::optional<double> density) {
  const int64_t rows = matrix.size(0), cols = matrix.size(1);
  TORCH_CHECK_VALUE(at::isfinite(matrix).all().item<bool>(), name, " must be finite, got nan or infinite values");
  const Tensor by_column = matrix.t().reshape({-1});
  Tensor kept = by_column != 0;
  if (density.has_value()) {
    Tensor magnitude = by_column.abs();
    if (magnitude.scalar_type() != torch::kDouble) magnitude = magnitude.to(torch::kFloat);
    const int64_t dropped = rows * cols - connections(density, std::nullopt, rows * cols);
    magnitude = magnitude.to(home_of("dendnorm::weakest", magnitude.device()));
    kept = ops::call_weakest(magnitude, dropped).logical_not().to(matrix.device());
  }
  return kept.nonzero().flatten();
}

SparseLinear SparseLinear::from_dense(const torch::nn::Linear& linear, std::optional<double> density,
                                      const NormChoice& norm) {
  torch::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(!linear.is_empty(), "linear must be a torch::nn::Linear, got an empty one");
  const Tensor dense = linear->weight.detach();
  const int64_t rows = dense.size(0), cols = dense.size(1);
  checked_size("linear.in_features", cols);
  checked_size("linear.out_features", rows);
  const Tensor keys = largest("linear.weight", dense, density);
  const auto dtype = dense.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  auto options = SparseLinearOptions(cols, rows).nnz(keys.numel()).norm(norm).bias(linear->bias.defined());
  const std::shared_ptr<SparseLinearImpl> layer(
      new SparseLinearImpl(options.device(dense.device()).dtype(dtype), SparseLinearImpl::Unwritten{}));
  const auto [ccol, row] = pattern_of_keys(keys, rows, cols);
  layer->fill(ccol, row, dense.t().reshape({-1}).index({keys}), linear->bias);
  layer->weight.requires_grad_(linear->weight.requires_grad());
  if (linear->bias.defined()) layer->bias.requires_grad_(linear->bias.requires_grad());
  layer->train(linear->is_training());
  return SparseLinear(layer);
}

SparseLinear SparseLinear::from_csr(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                                    std::pair<int64_t, int64_t> shape, const Tensor& bias, const NormChoice& norm) {
  torch::NoGradGuard no_grad;
  const int64_t rows = checked_size("shape[0]", shape.first), cols = checked_size("shape[1]", shape.second);
  const Tensor crow = as_index("crow_indices", crow_indices), col = as_index("col_indices", col_indices);
  check_compressed(crow, col, rows, cols, "crow_indices", "col_indices");
  for (const auto& [name, tensor, size] :
       {std::tuple("values", &values, col.numel()), std::tuple("bias", &bias, rows)}) {
    if (!tensor->defined() && tensor == &bias) continue;
    TORCH_CHECK_TYPE(tensor->defined(), name, " must be a tensor, got none");
    TORCH_CHECK_TYPE(tensor->scalar_type() == torch::kFloat || tensor->scalar_type() == torch::kDouble, name,
                     " must be of dtype float32 or float64, got ", tensor->scalar_type());
    TORCH_CHECK_VALUE(tensor->dim() == 1 && tensor->numel() == size, name, " must have shape (", size, ",), got ",
                      tensor->sizes());
    TORCH_CHECK_VALUE(tensor->device() == crow.device(), name, " must be on ", crow.device(), " like the indices, got ",
                      tensor->device());
    TORCH_CHECK_VALUE(at::isfinite(*tensor).all().item<bool>(), name, " must be finite, got nan or infinite values");
  }
  TORCH_CHECK_TYPE(!bias.defined() || bias.scalar_type() == values.scalar_type(), "bias must be of values' dtype ",
                   values.scalar_type(), ", got ", bias.scalar_type());
  const auto [ccol, row, order] = transposed(crow, col, cols);
  const auto options = SparseLinearOptions(cols, rows)
                           .nnz(col.numel())
                           .norm(norm)
                           .bias(bias.defined())
                           .device(values.device())
                           .dtype(values.scalar_type());
  const std::shared_ptr<SparseLinearImpl> layer(new SparseLinearImpl(options, SparseLinearImpl::Unwritten{}));
  layer->fill(ccol, row, values.index({order.to(torch::kLong)}), bias);
  return SparseLinear(layer);
}

}  // namespace dendnorm::nn
