// Norms: which member of the family, and its excitability.
#include "core/norm.h"

#include <ATen/TensorIndexing.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>

#include <charconv>
#include <cmath>
#include <sstream>

#include "nn/dendnorm.h"
#include "nn/move.h"

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

// Of each row, or of each entry through its row: `otherwise` in rows where nothing is alive.
Tensor where(const Tensor& alive, const Tensor& values, double otherwise) {
  return at::where(alive, values, at::full({}, otherwise, values.options()));
}

// b = 1: v's length plays no part, so n_i^a ||w_i||_p must be |e|, in every row.
std::pair<Tensor, Tensor> raw_of_given_length(const std::string& name, const Tensor& w, const Tensor& row,
                                              const Tensor& live, const Tensor& needed, const Tensor& fixed,
                                              double start) {
  if (!live.any().item<bool>()) return {w, fixed.defined() ? fixed : w.new_full({}, start)};
  const Tensor e = fixed.defined() ? fixed : needed.masked_select(live)[0];
  const Tensor off = where(live, (needed / e.abs() - 1).abs(), 0);
  const auto worst = off.argmax().item<int64_t>();
  TORCH_CHECK_VALUE(off[worst].item<double>() <= 1e-5, "norm '", name,
                    "' must have n_i^a ||w_i||_p = |e| in every row to represent the given weights, got ",
                    needed[worst].item<double>(), " in row ", worst, " where e is ",
                    e.abs().expand_as(needed)[worst].item<double>(),
                    "; one excitability for each neuron (\"lp-variable:P\", \"weight_norm\", \"joint\") can");
  const Tensor rms = w.square().mean().sqrt();
  return {w * e.sign().expand_as(needed).index({row}) / (rms.item<double>() > 0 ? rms : at::ones({}, w.options())), e};
}

}  // namespace

NormOptions::NormOptions(double a, double b, double p) : a_(a), b_(b), p_(p) {}

NormImpl::NormImpl(NormOptions options_) : options(checked(options_)) {}

bool NormImpl::scales() const {
  return options.variable() || options.s().has_value() || options.a() != 0 || options.b() != 0;
}

std::string NormImpl::name() const {
  if (!alias_.empty()) return alias_;
  if (!scales()) return "none";
  const double a = options.a(), b = options.b(), p = options.p();
  const bool variable = options.variable();
  std::ostringstream text;
  if (a == 1 && b == 0) {
    text << (variable ? "l0-variable" : "l0");
  } else if (a == 0 && b == 1) {
    text << (variable ? "lp-variable:" : "lp:") << p;
  } else if (a == 1 && b == 1 && p == 2 && variable) {
    text << "joint";
  } else {
    text << "Norm(a=" << a << ", b=" << b << ", p=" << p << (variable ? ", variable=True)" : ")");
  }
  return text.str();
}

double NormImpl::start_for(double degree) const {
  if (options.s().has_value()) return *options.s();
  return options.gain() * excitability_start({options.a(), options.b(), options.p()}, degree);
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
// already is kept, and so is one that `s` gives unless b = 1, where the given w decide it. A free one is chosen so that
// the mean square of v is 1, that of the connections which rewiring adds.
std::pair<Tensor, Tensor> NormImpl::raw_values(const Tensor& effective, const Tensor& row,
                                               const Tensor& degrees) const {
  const Tensor w = effective.to(at::kDouble);
  if (!scales()) return {w, Tensor()};
  const double a = options.a(), b = options.b(), p = options.p();
  const bool variable = options.variable();
  const int64_t rows = degrees.numel();
  const Tensor counted = degrees.to(at::kDouble).clamp_min(1);
  const Tensor top = w.new_zeros({rows}).scatter_reduce_(0, row, w.abs(), "amax");
  const Tensor live = top > 0;
  const Tensor safe = where(live, top, 1);
  const Tensor unit = w / safe.index({row});  // divided first: powers of 1e20 would overflow
  const Tensor power = w.new_zeros({rows}).index_add_(0, row, unit.abs().pow(p));
  const Tensor length = safe * where(live, power, 1).pow(1 / p);  // ||w_i||_p, 1 where there is nothing to scale
  Tensor fixed = excitability.defined() ? excitability.detach().to(at::kDouble) : Tensor();
  if (!fixed.defined() && options.s().has_value() && b != 1) {
    fixed = w.new_full(variable ? std::vector<int64_t>{rows} : std::vector<int64_t>{}, *options.s());
  }
  const double start = start_.value_or(start_for(static_cast<double>(w.numel()) / static_cast<double>(rows)));

  if (!fixed.defined() && variable) {
    // Every row its own: v_i = w_i / rms(w_i), and e_i undoes it.
    const Tensor square = w.new_zeros({rows}).index_add_(0, row, unit.square());
    const Tensor rms = safe * where(live, square / counted, 1).sqrt();
    return {w / rms.index({row}), where(live, counted.pow(a) * length.pow(b) * rms.pow(1 - b), start)};
  }
  if (b == 1) return raw_of_given_length(name(), w, row, live, counted.pow(a) * length, fixed, start);
  TORCH_CHECK_VALUE(!fixed.defined() || !live.logical_and(fixed == 0).any().item<bool>(),
                    "excitability of norm must not be 0 to represent the given weights, got 0");

  // ||v|| = (||w|| n^a / |e|)^(1 / (1 - b)), along w and with e's sign.
  const auto solve = [&](const Tensor& e) {
    const Tensor scale = (length * counted.pow(a) / e.abs()).pow(1 / (1 - b)) / length;
    return w * (where(live, scale, 1) * e.sign()).index({row});
  };
  if (fixed.defined()) return {solve(fixed), fixed};
  const Tensor values = solve(at::ones({}, w.options()));
  const Tensor size = w.numel() > 0 ? values.abs().max() : at::zeros({}, w.options());
  if (size.item<double>() == 0) return {values, w.new_full({}, start)};
  const Tensor e = (size * (values / size).square().mean().sqrt()).pow(1 - b);
  return {solve(e), e};
}

class NormFactory {
 public:
  static Norm aliased(Norm norm, const char* alias) {
    norm->alias_ = alias;
    return norm;
  }
};

namespace norms {

Norm none() { return Norm(NormOptions(0, 0)); }

Norm l0(bool variable, std::optional<double> s, double gain) {
  return Norm(NormOptions(1, 0).variable(variable).s(s).gain(gain));
}

Norm lp(double p, bool variable, std::optional<double> s, double gain) {
  return Norm(NormOptions(0, 1, p).variable(variable).s(s).gain(gain));
}

Norm weight_norm(std::optional<double> s, double gain) {
  return NormFactory::aliased(Norm(NormOptions(0, 1, 2).variable(true).s(s).gain(gain)), "weight_norm");
}

Norm joint(std::optional<double> s, double gain) { return Norm(NormOptions(1, 1, 2).variable(true).s(s).gain(gain)); }

Norm resolve(const std::string& name) {
  if (name == "none") return none();
  if (name == "l0" || name == "l0-variable") return l0(name != "l0");
  if (name == "weight_norm") return weight_norm();
  if (name == "joint") return joint();
  const std::size_t colon = name.find(':');
  const std::string kind = name.substr(0, colon);
  TORCH_CHECK_VALUE(colon != std::string::npos && (kind == "lp" || kind == "lp-variable"),
                    "norm must be \"none\", \"l0\", \"l0-variable\", \"lp:P\", \"lp-variable:P\", \"weight_norm\" or "
                    "\"joint\", got '",
                    name, "'");
  double p = 0;
  const char *begin = name.data() + colon + 1, *end = name.data() + name.size();
  const auto [stopped, error] = std::from_chars(begin, end, p);
  TORCH_CHECK_VALUE(error == std::errc() && stopped == end, "p in norm must be a number of at least 1, got '", name,
                    "'");
  return lp(p, kind == "lp-variable");
}

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
