// Makes the layers that test_cpp.py makes, trains them as it does, and writes every result: the bits must be the same.
#include <dendnorm.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <torch/utils.h>

#include <algorithm>
#include <iostream>
#include <string>

namespace dn = dendnorm::nn;
namespace F = torch::nn::functional;

namespace {

torch::nn::Sequential model_of(const std::string& norm, torch::Dtype dtype) {
  // Two layers that share what they have: the second is square where one e per neuron is shared.
  const dn::Norm shared = dn::norms::resolve(norm);
  const auto options = [&](int64_t in, int64_t out, int64_t seed) {
    return dn::SparseLinearOptions(in, out).norm(shared).seed(seed).dtype(dtype);
  };
  // One after the other: the first to take a shared norm decides where it starts, and the order in which arguments of
  // one call are made is the compiler's.
  torch::nn::Sequential model;
  model->push_back(dn::SparseLinear(options(20, 30, 3).density(0.2)));
  model->push_back(torch::nn::Sigmoid());
  model->push_back(dn::SparseLinear(options(30, 30, 4).nnz(123)));
  model->push_back(torch::nn::ReLU());
  model->push_back(dn::SparseLinear(dn::SparseLinearOptions(30, 5).density(1).norm(nullptr).seed(5).dtype(dtype)));
  return model;
}

// A model as tensors in a module, to be written with save_state_dict.
struct ResultsImpl : torch::nn::Module {
  void add(const std::string& name, const torch::Tensor& tensor) { register_buffer(name, tensor.detach().clone()); }
};

template <class Optimizer>
void train(torch::nn::Sequential& model, Optimizer& optimizer, const torch::Tensor& x, const torch::Tensor& y,
           ResultsImpl& results) {
  dendnorm::SET rewire(model, optimizer, dendnorm::SETOptions().zeta(0.3).seed(7));
  for (int epoch = 0; epoch < 3; ++epoch) {
    for (int64_t first = 0; first < x.size(0); first += 10) {
      optimizer.zero_grad();
      F::cross_entropy(model->forward(x.slice(0, first, first + 10)), y.slice(0, first, first + 10)).backward();
      optimizer.step();
    }
    const auto report = rewire.step();
    for (std::size_t i = 0; i < report.layers.size(); ++i) {
      const std::string name = std::to_string(epoch) + "_" + std::to_string(i);
      results.add("removed_" + name, torch::stack({report.layers[i].removed.row, report.layers[i].removed.col}));
      results.add("grown_" + name, torch::stack({report.layers[i].grown.row, report.layers[i].grown.col}));
    }
  }
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 5) {
    std::cerr << "usage: parity FOLDER NORM float32|float64 sgd|adam\n";
    return 2;
  }
  const std::string folder = std::string(argv[1]) + "/", norm = argv[2];
  const auto dtype = std::string(argv[3]) == "float64" ? torch::kDouble : torch::kFloat;
  torch::set_num_threads(1);
  auto data = dn::read_state_dict(folder + "data.safetensors");
  auto model = model_of(norm, dtype);
  dn::save_state_dict(*model, folder + "fresh.safetensors");

  ResultsImpl results;
  results.add("parameters", torch::tensor(static_cast<int64_t>(model->parameters().size())));
  const auto& first = *std::dynamic_pointer_cast<dn::SparseLinearImpl>(model->ptr(0));
  const auto edges = first.edges();
  results.add("edges", torch::stack({edges.row, edges.col}));
  results.add("in_degrees", first.in_degrees());
  results.add("out_degrees", first.out_degrees());
  results.add("effective_weight", first.effective_weight());

  const auto x = data["x"].to(dtype), y = data["y"];
  const auto output = model->forward(x);
  F::cross_entropy(output, y).backward();
  results.add("output", output);
  for (const auto& parameter : model->named_parameters()) {
    std::string name = parameter.key();
    std::replace(name.begin(), name.end(), '.', '_');
    results.add("grad_" + name, parameter->grad());
  }

  // Converted layers: from the largest weights of a dense one, and from a CSR matrix.
  torch::nn::Linear dense(torch::nn::LinearOptions(20, 30));
  {
    torch::NoGradGuard no_grad;
    dense->to(dtype);
    dense->weight.copy_(data["dense"]);
    dense->bias.copy_(data["dense_bias"]);
  }
  if (norm.rfind("lp:", 0) != 0) {
    const auto converted = dn::SparseLinear::from_dense(dense, 0.3, norm);
    results.add("dense_weight", converted->weight);
    results.add("dense_row_indices", converted->row_indices);
    results.add("dense_back", converted->to_dense()->weight);
    if (converted->norm->excitability.defined()) results.add("dense_excitability", converted->norm->excitability);
    const auto csr = converted->to_sparse_csr();
    const auto again = dn::SparseLinear::from_csr(csr.crow_indices(), csr.col_indices(), csr.values(), {30, 20},
                                                  converted->bias, norm);
    results.add("csr_weight", again->weight);
  }

  if (std::string(argv[4]) == "sgd") {
    torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    train(model, optimizer, x, y, results);
  } else {
    torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.01));
    train(model, optimizer, x, y, results);
  }
  dn::save_state_dict(*model, folder + "trained.safetensors");
  dn::save_state_dict(results, folder + "results.safetensors");
  torch::save(model, folder + "archive.pt");

  // What Python trained further and wrote, in both of its formats.
  for (const char* name : {"python.pt", "python.safetensors"}) {
    auto fresh = model_of(norm, dtype);
    dn::load_state_dict(*fresh, dn::read_state_dict(folder + name));
    ResultsImpl outputs;
    outputs.add("output", fresh->forward(x));
    dn::save_state_dict(outputs, folder + name + ".output");
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
