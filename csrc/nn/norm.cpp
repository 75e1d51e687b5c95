// Norms: which member of the family, and its excitability.
#include "core/scale.h"

#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <stdexcept>
#include <string_view>

#include "core/members.h"
#include "nn/dendnorm.h"
#include "nn/move.h"
#include "ops/call.h"

namespace dendnorm::nn {
namespace {

using at::Tensor;

void check_finite(const char* name, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value), name, " must be finite, got ", value);
}

const NormOptions& checked(const NormOptions& options) {
  check_finite("a", options.a());
  check_finite("b", options.b());
  check_finite("p", options.p());
  TORCH_CHECK_VALUE(options.p() >= 1, "p must be at least 1, got ", options.p());
  if (options.s().has_value()) check_finite("s", *options.s());
  check_finite("gain", options.gain());
  return options;
}

dendnorm::Norm formula_of(const NormOptions& options) { return {options.a(), options.b(), options.p()}; }

Member member(std::string_view name) {
  try {
    return member_named(name);
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

}  // namespace

NormOptions::NormOptions(double a, double b, double p) : a_(a), b_(b), p_(p) {}

NormImpl::NormImpl(NormOptions options_) : options(checked(options_)) {}

bool NormImpl::scales() const {
  return options.variable() || options.s().has_value() || options.a() != 0 || options.b() != 0;
}

std::string NormImpl::name() const {
  return alias_.empty() ? name_of_member(formula_of(options), options.variable(), scales()) : alias_;
}

double NormImpl::deviation(double degree) const {
  return options.s().has_value() ? 1.0 : value_deviation(degree, options.gain());
}

double NormImpl::start_for(double degree) const {
  if (options.s().has_value()) return *options.s();
  return excitability_start(formula_of(options), degree, deviation(degree));
}

void NormImpl::check(const SparseLinearImpl& layer) const {
  if (!excitability.defined()) return;
  const int64_t rows = layer.options.out_features();
  TORCH_CHECK_VALUE(!options.variable() || excitability.numel() == rows, "norm has one excitability for each of ",
                    excitability.numel(), " neurons; out_features must be ", excitability.numel(), " to share it, got ",
                    rows);
  TORCH_CHECK_VALUE(
      excitability.scalar_type() == layer.weight.scalar_type() && excitability.device() == layer.weight.device(),
      "norm is shared with a layer of ", excitability.scalar_type(), " on ", excitability.device(),
      "; dtype and device must be the same, got ", layer.weight.scalar_type(), " on ", layer.weight.device());
}

void NormImpl::initialise(const SparseLinearImpl& layer) {
  check(layer);
  if (!scales() || excitability.defined()) return;
  const int64_t rows = layer.options.out_features();
  start_ = start_for(static_cast<double>(layer.nnz()) / static_cast<double>(rows));
  const std::vector<int64_t> shape = options.variable() ? std::vector<int64_t>{rows} : std::vector<int64_t>{};
  excitability = register_parameter("excitability", at::full(shape, *start_, layer.weight.options()));
}

void NormImpl::reset_parameters() {
  torch::NoGradGuard no_grad;
  if (excitability.defined()) excitability.fill_(*start_);
}

// Called by Cloneable on a copy, to give it tensors of its own.
void NormImpl::reset() {
  registered_ = false;
  if (excitability.defined()) {
    const bool trained = excitability.requires_grad();
    excitability = register_parameter("excitability", at::empty_like(excitability.detach()), trained);
  }
}

void NormImpl::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  move_values(excitability, device, dtype, non_blocking);
}
void NormImpl::to(torch::Dtype dtype, bool non_blocking) { move_values(excitability, {}, dtype, non_blocking); }
void NormImpl::to(torch::Device device, bool non_blocking) { move_values(excitability, device, {}, non_blocking); }

void NormImpl::pretty_print(std::ostream& stream) const {
  const std::string text = name();
  stream << (text.starts_with("Norm(") ? text : "Norm(" + text + ")");
}

// The inverse of the formula: v and e, float64, with (e_i / D_i) v_i = the given w_i. An excitability that is there
// already is kept, and so is one that `s` gives unless b = 1, where the given w decide it.
std::pair<Tensor, Tensor> NormImpl::raw_values(const Tensor& effective, const Tensor& row_indices, int64_t rows) const {
  const Tensor w = effective.to(at::kDouble).contiguous();
  if (!scales()) return {w, Tensor()};
  std::optional<Tensor> given;
  if (excitability.defined()) {
    given = excitability.detach().to(at::kDouble).contiguous();
  } else if (options.s().has_value() && options.b() != 1) {
    given =
        at::full(options.variable() ? std::vector<int64_t>{rows} : std::vector<int64_t>{}, *options.s(), w.options());
  }
  const double start = start_.value_or(start_for(static_cast<double>(w.numel()) / static_cast<double>(rows)));
  const auto [v, e] =
      ops::call_raw_values(w, row_indices, rows, formula_of(options), options.variable(), given, start, name());
  return {v, e};
}

class NormFactory {
 public:
  // A member of the family by its name; another order than that may be given.
  static Norm of(std::string_view name, std::optional<double> p, std::optional<double> s, double gain) {
    const Member found = member(name);
    const dendnorm::Norm& formula = found.norm;
    Norm norm(NormOptions(formula.a, formula.b, p.value_or(formula.p)).variable(found.variable).s(s).gain(gain));
    if (!found.ordered && norm->name() != found.name) norm->alias_ = found.name;
    return norm;
  }
};

namespace norms {

Norm none() { return resolve("none"); }

Norm l0(bool variable, std::optional<double> s, double gain) {
  return NormFactory::of(variable ? "l0-variable" : "l0", {}, s, gain);
}

Norm lp(double p, bool variable, std::optional<double> s, double gain) {
  return NormFactory::of(variable ? "lp-variable:2" : "lp:2", p, s, gain);
}

Norm weight_norm(std::optional<double> s, double gain) { return NormFactory::of("weight_norm", {}, s, gain); }

Norm joint(std::optional<double> s, double gain) { return NormFactory::of("joint", {}, s, gain); }

Norm resolve(const std::string& name) { return NormFactory::of(name, {}, {}, 1); }

}  // namespace norms

NormChoice::NormChoice(std::nullptr_t) : choice_("none") {}
NormChoice::NormChoice(const char* name) : choice_(std::string(name)) {}
NormChoice::NormChoice(std::string name) : choice_(std::move(name)) {}
NormChoice::NormChoice(Norm norm) : choice_(std::move(norm)) {}

Norm NormChoice::resolve() const {
  if (const auto* name = std::get_if<std::string>(&choice_)) return norms::resolve(*name);
  const Norm& norm = std::get<Norm>(choice_);
  return norm.is_empty() ? norms::none() : norm;
}

}  // namespace dendnorm::nn
