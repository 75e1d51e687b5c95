// dendnorm for LibTorch: truly sparse layers with dendritic normalisation, and sparse evolutionary training.
//
//   auto layer = dendnorm::nn::SparseLinear(dendnorm::nn::SparseLinearOptions(784, 100).density(0.2).norm("l0"));
//   dendnorm::SET rewire(model, optimizer, dendnorm::SETOptions().zeta(0.15));
//
// Names, meanings and results are those of the Python package; the same seed gives the same bits. A mistake of the
// caller is a c10::Error (c10::ValueError or c10::TypeError) that names the argument, what was expected and what came,
// and leaves everything as it was.
#pragma once

#include <torch/arg.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>
#include <torch/ordered_dict.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

// What a program may use of the library, which hides all else. Also for the program's compiler: a class must be the
// same on both sides, or its exceptions and casts are not.
#define DENDNORM_API __attribute__((visibility("default")))

namespace dendnorm {

class SET;

// Output and input neuron of connections: two int64 tensors of the same length.
struct Edges {
  at::Tensor row, col;
};

namespace nn {

class SparseLinear;
class SparseLinearImpl;

using StateDict = torch::OrderedDict<std::string, torch::Tensor>;

// ---- Normalisations: one family, w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i ----

struct DENDNORM_API NormOptions {
  NormOptions(double a, double b, double p = 2);

  // Exponents, any finite numbers; the order of the norm, finite and at least 1, plays no part where b = 0.
  TORCH_ARG(double, a);
  TORCH_ARG(double, b);
  TORCH_ARG(double, p);
  // One e for each output neuron instead of one for all.
  TORCH_ARG(bool, variable) = false;
  // Where e starts (the paper: 25); the values are then from N(0, 1). Without it: e starts at D of the mean neuron, so
  // that v is the effective weight, and v is from N(0, gain^2 / n) with n connections to the mean neuron: a fresh
  // layer's output has about gain^2 times its input's variance.
  TORCH_ARG(std::optional<double>, s) = std::nullopt;
  TORCH_ARG(double, gain) = 1;
};

// One member of the family, and the module that holds its e. Layers that are given the same object share e, whose
// gradient is then summed over them. The first of them registers the norm as its submodule "norm", so that e is listed
// once in the parameters of a model that holds them all: keep that layer in the model.
class DENDNORM_API NormImpl : public torch::nn::Cloneable<NormImpl> {
 public:
  explicit NormImpl(NormOptions options);

  NormOptions options;
  // Shape () or (M,), made when the first layer takes this norm. Undefined before, and always where there is nothing to
  // scale (a = b = 0, not variable and no s).
  torch::Tensor excitability;

  // Whether there is an excitability at all.
  bool scales() const;
  // The string form, where there is one.
  std::string name() const;
  // Puts the excitability, if there is one, back to where it started.
  void reset_parameters();

  void reset() override;
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Device device, bool non_blocking = false) override;
  void pretty_print(std::ostream& stream) const override;

 private:
  friend class SparseLinearImpl;
  friend class NormFactory;

  double deviation(double degree) const;
  double start_for(double degree) const;
  void check(const SparseLinearImpl& layer) const;
  void initialise(const SparseLinearImpl& layer);
  std::pair<torch::Tensor, torch::Tensor> raw_values(const torch::Tensor& effective, const torch::Tensor& row_indices,
                                                     int64_t rows) const;

  std::optional<double> start_;
  std::string alias_;
  bool registered_ = false;
};

TORCH_MODULE(Norm);

namespace norms {

// w = v, the paper's control.
DENDNORM_API Norm none();
// Dendritic: Eq 1 and 2.
DENDNORM_API Norm l0(bool variable = false, std::optional<double> s = {}, double gain = 1);
// Eq 5, with variable Eq 6.
DENDNORM_API Norm lp(double p, bool variable = false, std::optional<double> s = {}, double gain = 1);
// Heterosynaptic.
DENDNORM_API Norm weight_norm(std::optional<double> s = {}, double gain = 1);
// Eq 3 and 4.
DENDNORM_API Norm joint(std::optional<double> s = {}, double gain = 1);
// From "none", "l0", "l0-variable", "lp:P", "lp-variable:P", "weight_norm" or "joint".
DENDNORM_API Norm resolve(const std::string& name);

}  // namespace norms

// What a layer's norm is given as: a string makes each layer its own, an object is shared.
class DENDNORM_API NormChoice {
 public:
  NormChoice(std::nullptr_t);  // none
  NormChoice(const char* name);
  NormChoice(std::string name);
  NormChoice(Norm norm);
  Norm resolve() const;

 private:
  std::variant<std::string, Norm> choice_;
};

// ---- The layer ----

struct DENDNORM_API SparseLinearOptions {
  SparseLinearOptions(int64_t in_features, int64_t out_features);

  TORCH_ARG(int64_t, in_features);
  TORCH_ARG(int64_t, out_features);
  // Share of the in_features * out_features positions that are connected, in (0, 1], or their number: one of the two.
  TORCH_ARG(std::optional<double>, density) = std::nullopt;
  TORCH_ARG(std::optional<int64_t>, nnz) = std::nullopt;
  TORCH_ARG(NormChoice, norm) = "l0";
  TORCH_ARG(bool, bias) = true;
  // Of edges and values, in [0, 2^63); without it one is drawn from torch's default generator.
  TORCH_ARG(std::optional<int64_t>, seed) = std::nullopt;
  TORCH_ARG(torch::Device, device) = torch::kCPU;
  // float32 or float64; float32 layers take 16-bit activations. Without it: torch's default, or float32.
  TORCH_ARG(std::optional<torch::Dtype>, dtype) = std::nullopt;
};

// y = x W^T + bias with exactly nnz connections, where row i of W is w_i = (e_i / (n_i^a ||v_i||_p^b)) v_i (Bird and
// Cuntz, "Dendritic normalisation improves learning in sparsely connected artificial neural networks", Eq 1 to 6).
// Used like torch::nn::Linear. A fresh layer draws its connections uniformly without replacement and its values from
// N(0, 1 / n), n being its neurons' mean number of afferents (see NormOptions); its bias is 0. Shape, storage and
// identity of every tensor stay the same through rewiring and loading.
class DENDNORM_API SparseLinearImpl : public torch::nn::Cloneable<SparseLinearImpl> {
 public:
  SparseLinearImpl(int64_t in_features, int64_t out_features, double density);
  explicit SparseLinearImpl(SparseLinearOptions options);

  SparseLinearOptions options;
  torch::Tensor weight;  // Parameter (nnz,), v in column order: by input neuron, then by output neuron
  torch::Tensor bias;    // Parameter (M,), or undefined
  Norm norm{nullptr};
  // The pattern, int32. Buffers: where the connections of each input neuron begin (N + 1,) and the output neuron of
  // each (nnz,). They follow from these: the same by output neuron, (M + 1,) and (nnz,), and `perm` (nnz,), with which
  // weight[perm] is in the order of that view.
  torch::Tensor ccol_indices, row_indices, crow_indices, col_indices, perm;

  // Input (*, N) of weight's dtype, or of 16 bits where that is float32; output (*, M) of the input's dtype.
  torch::Tensor forward(const torch::Tensor& input);
  // w (nnz,), in the order of `weight`; differentiable in the values and the excitability.
  torch::Tensor effective_weight() const;
  // Output and input neuron of each entry of `weight`.
  Edges edges() const;
  // n_i, the number of afferents of each output neuron (M,), and of efferents of each input neuron (N,): int64.
  torch::Tensor in_degrees() const;
  torch::Tensor out_degrees() const;
  int64_t nnz() const { return weight.numel(); }
  double density() const;

  // A torch::nn::Linear with the effective weights and a copy of the bias, of the same dtype, device and mode.
  torch::nn::Linear to_dense() const;
  // The effective weights as a CSR tensor (M, N) with int32 indices, detached and with its own memory.
  torch::Tensor to_sparse_csr() const;
  // Draws edges and values anew, in place, as a fresh layer with this seed has them; bias 0, excitability reset.
  void reset_parameters(std::optional<int64_t> seed = std::nullopt);

  void reset() override;
  // A copy with a norm of its own, also where this layer shares one.
  std::shared_ptr<torch::nn::Module> clone(const std::optional<torch::Device>& device = std::nullopt) const override;
  // As in Python, 16-bit dtypes leave the values in float32, and indices stay integers.
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Device device, bool non_blocking = false) override;
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;
  void pretty_print(std::ostream& stream) const override;

  // Throws, without a change, where the two are no pattern of this layer's shape and nnz.
  void check_pattern(const torch::Tensor& ccol_indices, const torch::Tensor& row_indices) const;

 private:
  friend class SparseLinear;
  friend class dendnorm::SET;
  friend DENDNORM_API void load_state_dict(torch::nn::Module& module, const StateDict& state, bool strict);
  struct Unwritten {};

  // Takes a checked pattern in place; the caller moves the values.
  void write_pattern(const torch::Tensor& ccol_indices, const torch::Tensor& row_indices);
  // The same with what follows from it.
  void write_views(const torch::Tensor& ccol_indices, const torch::Tensor& row_indices,
                   const torch::Tensor& crow_indices, const torch::Tensor& col_indices, const torch::Tensor& perm);

  SparseLinearImpl(SparseLinearOptions options, Unwritten);
  static std::shared_ptr<SparseLinearImpl> of_weights(const SparseLinearOptions& options, const torch::Tensor& ccol,
                                                      const torch::Tensor& row, const torch::Tensor& effective,
                                                      const torch::Tensor& bias);
  void allocate();
  void adopt(const Norm& norm);
  void draw(int64_t seed);
  void move(const std::optional<torch::Device>& device, const std::optional<torch::Dtype>& dtype, bool non_blocking);
};

class DENDNORM_API SparseLinear : public torch::nn::ModuleHolder<SparseLinearImpl> {
 public:
  using Impl = SparseLinearImpl;
  using torch::nn::ModuleHolder<SparseLinearImpl>::ModuleHolder;

  // A layer that computes what `linear` does with its largest weights alone: round(density N M) of them or, without a
  // density, exactly those that are not 0. Throws where a norm cannot represent them (b = 1 with one excitability for
  // all neurons, unless their rows agree in n_i^a ||w_i||_p).
  static SparseLinear from_dense(const torch::nn::Linear& linear, std::optional<double> density = std::nullopt,
                                 const NormChoice& norm = "l0");
  // A layer whose effective weights are those of a CSR matrix of shape (M, N); a stored 0 is a connection like any
  // other. Indices int32 or int64, values and bias float32 or float64.
  static SparseLinear from_csr(const torch::Tensor& crow_indices, const torch::Tensor& col_indices,
                               const torch::Tensor& values, std::pair<int64_t, int64_t> shape,
                               const torch::Tensor& bias = {}, const NormChoice& norm = "l0");
};

// ---- State dicts: the names and tensors of Python's, for any module ----

// The tensors themselves, not copies, under the names that Python gives them; a shared excitability under each. Beside
// each pattern its `pattern_mark`, float64 (8,), which tells it from others.
DENDNORM_API StateDict state_dict(const torch::nn::Module& module);
// Copies into the module's tensors, all or nothing. Strict: no name may be missing or left over, but for marks, which
// files of version 0.1 have not; one that is there must be its pattern's.
DENDNORM_API void load_state_dict(torch::nn::Module& module, const StateDict& state, bool strict = true);
// A safetensors file, which Python reads with safetensors.torch.load_file: the whole new one or, where it throws, what
// was there before. A new file gets the mode of the process's umask, another keeps its own.
DENDNORM_API void save_state_dict(const torch::nn::Module& module, const std::string& path);
// Reads a safetensors file, or one that Python wrote with torch.save(dict(model.state_dict()), path).
DENDNORM_API StateDict read_state_dict(const std::string& path);

}  // namespace nn

// ---- Sparse evolutionary training ----

// What one rewiring did to one layer: k connections went and as many came, both in column order.
struct LayerReport {
  std::string name;
  int64_t k;
  Edges removed, grown;
  int64_t nnz;
};

struct RewireReport {
  int64_t step;  // the number of this rewiring, from 1
  std::vector<LayerReport> layers;
};

DENDNORM_API std::ostream& operator<<(std::ostream& stream, const RewireReport& report);

struct SETOptions {
  TORCH_ARG(double, zeta) = 0.15;  // share of the connections that is replaced, in [0, 1]
  TORCH_ARG(int64_t, seed) = 0;    // in [0, 2^63)
};

// One step() excises, in every SparseLinear of the model, the k = round(zeta nnz) connections (half to even) of the
// smallest |w|, and grows k at positions that are then empty, uniformly at random, with values of 0, or, for norms with
// b other than 0, normal ones of the root mean square that the layer's values have. In place: parameters, storage and
// nnz stay. The gradient and the optimizer's state (SGD, Adam, AdamW, RMSprop, Adagrad) move with the connections that
// stay and are 0 for new ones. A step that throws has changed nothing.
//
// Source: D. C. Mocanu et al, "Scalable training of artificial neural networks with adaptive sparse connectivity
// inspired by network science", Nature Communications 9, 2018; the criterion as in Bird and Cuntz.
class DENDNORM_API SET {
 public:
  // The optimizer must hold the weight of every sparse layer that needs a gradient, and live as long as this object.
  SET(std::shared_ptr<torch::nn::Module> model, torch::optim::Optimizer& optimizer, SETOptions options = {});
  explicit SET(std::shared_ptr<torch::nn::Module> model, SETOptions options = {});
  template <class Impl>
  SET(const torch::nn::ModuleHolder<Impl>& model, torch::optim::Optimizer& optimizer, SETOptions options = {})
      : SET(std::shared_ptr<torch::nn::Module>(model.ptr()), optimizer, std::move(options)) {}
  template <class Impl>
  explicit SET(const torch::nn::ModuleHolder<Impl>& model, SETOptions options = {})
      : SET(std::shared_ptr<torch::nn::Module>(model.ptr()), std::move(options)) {}
  virtual ~SET() = default;

  RewireReport step();
  double zeta() const { return options_.zeta(); }
  void zeta(double value);

  // What decides the draws to come, as in Python: "seed", "steps" and "calls".
  std::map<std::string, int64_t> state_dict() const;
  void load_state_dict(const std::map<std::string, int64_t>& state);

 protected:
  // Of each connection (nnz,), floating; the least important go.
  virtual torch::Tensor importance(nn::SparseLinearImpl& layer);
  // Keys col * out_features + row of k empty positions of the pattern that is left, ascending: int64 (k,).
  virtual torch::Tensor grow(nn::SparseLinearImpl& layer, const torch::Tensor& ccol_indices,
                             const torch::Tensor& row_indices, int64_t k, int64_t step, int64_t index);
  // Values of k new connections, in the order of the keys: finite, (k,), of weight's dtype, best on `device`.
  virtual torch::Tensor draw(nn::SparseLinearImpl& layer, int64_t k, int64_t step, int64_t index, torch::Device device);
  // The tensors in an optimizer's state for one parameter; those of the weight's shape are moved. Override it for an
  // optimizer of your own.
  virtual std::vector<torch::Tensor> state_tensors(torch::optim::OptimizerParamState& state);

 private:
  struct Layers {
    std::string name;
    std::vector<nn::SparseLinearImpl*> sharing;  // more than one where they share the weight
  };
  struct Plan;

  SET(std::shared_ptr<torch::nn::Module> model, torch::optim::Optimizer* optimizer, SETOptions options);
  std::vector<Layers> layers() const;
  Plan plan(const Layers& layers, int64_t step, int64_t index);
  std::vector<torch::Tensor> companions(const std::string& name, const torch::Tensor& weight);

  std::shared_ptr<torch::nn::Module> model_;
  torch::optim::Optimizer* optimizer_;
  SETOptions options_;
  int64_t steps_ = 0;
};

}  // namespace dendnorm
