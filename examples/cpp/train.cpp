// Trains a sparse network with and without dendritic normalisation, rewires it after
// every epoch, saves and loads it.
//
//   train [--data FOLDER] [--epochs N] [--hidden M] [--save FILE]
//
// FOLDER holds the four files of MNIST or Fashion-MNIST, uncompressed (gunzip -k *.gz).
// Without it, the program makes a problem of its own: classes that are the nearest of
// several prototypes each, in noise.
#include <dendnorm.h>
#include <torch/data/datasets/mnist.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <torch/utils.h>

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

namespace F = torch::nn::functional;
using torch::Tensor;

struct Problem {
  Tensor train_inputs, train_labels, test_inputs,
      test_labels;  // (samples, features) in [0, 1), (samples,)
  int64_t features, classes;
};

Problem mnist(const std::string& folder) {
  using torch::data::datasets::MNIST;
  const MNIST train(folder, MNIST::Mode::kTrain), test(folder, MNIST::Mode::kTest);
  const auto flat = [](const Tensor& images) { return images.flatten(1).contiguous(); };
  return {flat(train.images()),
          train.targets().to(torch::kLong),
          flat(test.images()),
          test.targets().to(torch::kLong),
          28 * 28,
          10};
}

Problem prototypes() {
  const int64_t features = 64, classes = 10, each = 4, samples = 4000;
  const Tensor centres = torch::rand({classes * each, features});
  const Tensor chosen = torch::randint(classes * each, {samples}, torch::kLong);
  const Tensor inputs =
      (centres.index_select(0, chosen) + 0.35 * torch::randn({samples, features}))
          .clamp(0, 0.999);
  const Tensor labels = chosen.div(each, "floor");
  const int64_t cut = samples * 3 / 4;
  return {inputs.slice(0, 0, cut),
          labels.slice(0, 0, cut),
          inputs.slice(0, cut),
          labels.slice(0, cut),
          features,
          classes};
}

// [model]
torch::nn::Sequential network(int64_t features, int64_t hidden, int64_t classes,
                              const std::string& norm) {
  auto layer =
      dendnorm::nn::SparseLinear(dendnorm::nn::SparseLinearOptions(features, hidden)
                                     .density(0.2)
                                     .norm(norm)
                                     .seed(0));
  return torch::nn::Sequential(layer, torch::nn::Sigmoid(),
                               torch::nn::Linear(hidden, classes));
}
// [model]

double accuracy(torch::nn::Sequential& model, const Tensor& inputs,
                const Tensor& labels) {
  torch::NoGradGuard no_grad;
  return model->forward(inputs)
      .argmax(1)
      .eq(labels)
      .to(torch::kDouble)
      .mean()
      .item<double>();
}

// [train]
torch::nn::Sequential train(const Problem& problem, const std::string& norm,
                            int64_t hidden, int64_t epochs) {
  torch::manual_seed(0);
  auto model = network(problem.features, hidden, problem.classes, norm);
  torch::optim::SGD optimizer(model->parameters(),
                              torch::optim::SGDOptions(0.05).momentum(0.9));
  dendnorm::SET rewire(model, optimizer, dendnorm::SETOptions().zeta(0.15).seed(0));
  const int64_t samples = problem.train_inputs.size(0), batch = 10;
  for (int64_t epoch = 1; epoch <= epochs; ++epoch) {
    const Tensor order = torch::randperm(samples, torch::kLong);
    double cost = 0;
    for (int64_t first = 0; first < samples; first += batch) {
      const Tensor chosen = order.slice(0, first, first + batch);
      optimizer.zero_grad();
      const Tensor loss =
          F::cross_entropy(model->forward(problem.train_inputs.index_select(0, chosen)),
                           problem.train_labels.index_select(0, chosen));
      loss.backward();
      optimizer.step();
      cost += loss.item<double>() * static_cast<double>(chosen.numel());
    }
    const double before = accuracy(model, problem.test_inputs, problem.test_labels);
    const auto report = rewire.step();  // the weakest connections go, as many come
    const double after = accuracy(model, problem.test_inputs, problem.test_labels);
    std::printf(
        "%-5s epoch %2ld  cost %.4f  test accuracy %.4f, rewired %.4f  (%ld of %ld "
        "connections moved)\n",
        norm.c_str(), static_cast<long>(epoch), cost / static_cast<double>(samples),
        before, after, static_cast<long>(report.layers[0].k),
        static_cast<long>(report.layers[0].nnz));
  }
  return model;
}
// [train]

int main(int argc, char** argv) try {
  std::map<std::string, std::string> given{{"--data", ""},
                                           {"--epochs", "5"},
                                           {"--hidden", "100"},
                                           {"--save", "model.safetensors"}};
  for (int i = 1; i < argc; i += 2) {
    if (given.count(argv[i]) == 0 || i + 1 == argc) {
      std::cerr
          << "usage: train [--data FOLDER] [--epochs N] [--hidden M] [--save FILE]\n";
      return 2;
    }
    given[argv[i]] = argv[i + 1];
  }
  torch::manual_seed(1);
  const Problem problem =
      given["--data"].empty() ? prototypes() : mnist(given["--data"]);
  const int64_t hidden = std::stoll(given["--hidden"]),
                epochs = std::stoll(given["--epochs"]);
  train(problem, "none", hidden, epochs);
  auto model = train(problem, "l0", hidden, epochs);

  // [state]
  dendnorm::nn::save_state_dict(*model, given["--save"]);
  auto again = network(problem.features, hidden, problem.classes, "l0");
  dendnorm::nn::load_state_dict(*again, dendnorm::nn::read_state_dict(given["--save"]));
  // [state]
  if (!torch::equal(again->forward(problem.test_inputs),
                    model->forward(problem.test_inputs))) {
    throw std::runtime_error("the loaded network computes something else");
  }
  std::cout << "saved and loaded " << given["--save"] << '\n';
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
