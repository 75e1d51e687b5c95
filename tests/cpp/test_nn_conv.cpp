// The convolution for LibTorch: what torch::nn::Conv2d computes with the same filters, and a layer like the linear one.
#include <gtest/gtest.h>
#include <torch/nn/functional/conv.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <cmath>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "nn/dendnorm.h"

namespace {

namespace dn = dendnorm::nn;
using torch::Tensor;
using torch::nn::Conv2dOptions;

dn::SparseConv2d layer_of(const Conv2dOptions& conv, const dn::NormChoice& norm = "l0", int64_t seed = 1,
                          double density = 0.4) {
  return dn::SparseConv2d(dn::SparseConv2dOptions(conv).density(density).norm(norm).seed(seed).dtype(torch::kDouble));
}

// The filters by the definition, in plain loops.
Tensor filters_of(const dn::SparseConv2dImpl& layer) {
  const int64_t m = layer.options.out_features(), n = layer.options.in_features();
  const auto [row, col] = layer.edges();
  const double a = layer.norm->options.a(), b = layer.norm->options.b(), p = layer.norm->options.p();
  const Tensor& e = layer.norm->excitability;
  Tensor dense = torch::zeros({m, n}, torch::kDouble);
  for (int64_t i = 0; i < m; ++i) {
    double count = 0, power = 0;
    for (int64_t k = 0; k < layer.nnz(); ++k) {
      if (row[k].item<int64_t>() != i) continue;
      ++count;
      power += std::pow(std::fabs(layer.weight[k].item<double>()), p);
    }
    const double scale = e.defined() ? (e.dim() == 0 ? e : e[i]).item<double>() : 1.0;
    for (int64_t k = 0; k < layer.nnz(); ++k) {
      if (row[k].item<int64_t>() != i) continue;
      dense[i][col[k].item<int64_t>()] =
          scale / (std::pow(count, a) * std::pow(power, b / p)) * layer.weight[k].item<double>();
    }
  }
  const auto& kernel = *layer.conv.kernel_size();
  return dense.view({m, -1, kernel[0], kernel[1]});
}

const std::vector<std::pair<std::string, std::function<Conv2dOptions()>>> kWindows{
    {"plain", [] { return Conv2dOptions(4, 6, 3); }},
    {"window", [] { return Conv2dOptions(4, 6, {3, 2}).stride({2, 1}).padding({1, 2}).dilation({1, 2}); }},
    {"groups", [] { return Conv2dOptions(4, 6, 1).groups(2).bias(false); }},
    {"same", [] { return Conv2dOptions(4, 6, {4, 3}).padding(torch::kSame).dilation(2); }},
    {"valid", [] { return Conv2dOptions(4, 6, 3).padding(torch::kValid); }},
    {"reflect", [] { return Conv2dOptions(4, 6, 3).padding({1, 2}).padding_mode(torch::kReflect); }},
    {"replicate", [] { return Conv2dOptions(4, 6, 3).padding(2).padding_mode(torch::kReplicate); }},
    {"circular", [] { return Conv2dOptions(4, 6, 3).padding(torch::kSame).padding_mode(torch::kCircular).groups(2); }},
};

TEST(SparseConv2d, ComputesWhatTheDenseLayerDoesWithTheSameFilters) {
  for (const auto& [name, window] : kWindows) {
    for (const char* norm : {"none", "l0", "joint"}) {
      auto layer = layer_of(window(), norm);
      if (layer->bias.defined()) torch::nn::init::normal_(layer->bias);
      auto dense = layer->to_dense();
      EXPECT_TRUE(torch::allclose(dense->weight, filters_of(*layer), 1e-12, 1e-13)) << name << norm;
      const Tensor x = torch::randn({3, 4, 9, 10}, torch::kDouble).requires_grad_();
      const Tensor other = x.detach().clone().requires_grad_();
      const Tensor y = layer->forward(x), wanted = dense->forward(other);
      ASSERT_EQ(y.sizes(), wanted.sizes()) << name;
      EXPECT_TRUE(torch::allclose(y, wanted, 1e-10, 1e-12)) << name << norm;
      EXPECT_TRUE(torch::allclose(layer->forward(x[0]), wanted[0], 1e-10, 1e-12)) << name << norm;
      const Tensor r = torch::randn_like(y);
      (y * r).sum().backward();
      (wanted * r).sum().backward();
      EXPECT_TRUE(torch::allclose(x.grad(), other.grad(), 1e-10, 1e-12)) << name << norm;
      if (std::string(norm) == "none") {
        const auto [row, col] = layer->edges();
        EXPECT_TRUE(torch::allclose(layer->weight.grad(), dense->weight.grad().flatten(1).index({row, col}))) << name;
      }
    }
  }
}

TEST(SparseConv2d, IsMadeOfADenseOne) {
  for (const auto& [name, window] : kWindows) {
    torch::nn::Conv2d conv(window());
    conv->eval();
    conv->weight.requires_grad_(false);
    const auto layer = dn::SparseConv2d::from_dense(conv, 0.5, "joint");
    EXPECT_EQ(layer->nnz(), conv->weight.numel() / 2) << name;
    EXPECT_FALSE(layer->is_training() || layer->weight.requires_grad());
    const Tensor kept = layer->to_dense()->weight, dropped = conv->weight.masked_select(kept == 0).abs();
    EXPECT_TRUE(torch::allclose(kept, torch::where(kept != 0, conv->weight, 0.0))) << name;
    EXPECT_GE(conv->weight.masked_select(kept != 0).abs().min().item<double>(), dropped.max().item<double>());
  }
}

TEST(SparseConv2d, IsCopiedSavedAndRewiredLikeTheLinearLayer) {
  torch::nn::Sequential model(layer_of(Conv2dOptions(2, 4, 3).padding(1), "joint"), torch::nn::ReLU(),
                              layer_of(Conv2dOptions(4, 3, 3).groups(1), "l0", 2));
  auto first = std::dynamic_pointer_cast<dn::SparseConv2dImpl>(model->ptr(0));
  const Tensor x = torch::randn({2, 2, 6, 6}, torch::kDouble);
  const auto copy = std::dynamic_pointer_cast<dn::SparseConv2dImpl>(first->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_TRUE(torch::equal(copy->forward(x), first->forward(x)));
  EXPECT_FALSE(copy->weight.is_same(first->weight));

  torch::nn::Sequential other(layer_of(Conv2dOptions(2, 4, 3).padding(1), "joint", 7), torch::nn::ReLU(),
                              layer_of(Conv2dOptions(4, 3, 3), "l0", 8));
  dn::load_state_dict(*other, dn::state_dict(*model));
  EXPECT_TRUE(torch::equal(other->forward(x), model->forward(x)));
  std::stringstream stream;
  torch::save(model, stream);
  torch::nn::Sequential loaded(layer_of(Conv2dOptions(2, 4, 3).padding(1), "joint", 7), torch::nn::ReLU(),
                               layer_of(Conv2dOptions(4, 3, 3), "l0", 8));
  torch::load(loaded, stream);
  EXPECT_TRUE(torch::equal(loaded->forward(x), model->forward(x)));

  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  model->forward(x).square().sum().backward();
  optimizer.step();
  dendnorm::SET rewire(model, optimizer, dendnorm::SETOptions().zeta(0.3));
  const int64_t nnz = first->nnz();
  const void* storage = first->weight.data_ptr();
  const auto report = rewire.step();
  ASSERT_EQ(report.layers.size(), 2U);
  EXPECT_EQ(report.layers[0].k, static_cast<int64_t>(std::nearbyint(0.3 * static_cast<double>(nnz))));
  EXPECT_EQ(first->nnz(), nnz);
  EXPECT_EQ(first->weight.data_ptr(), storage);
  EXPECT_TRUE(torch::allclose(first->forward(x), first->to_dense()->forward(x), 1e-10, 1e-12));
  EXPECT_FALSE(torch::equal(first->row_indices, copy->row_indices));
}

TEST(SparseConv2d, RefusesByName) {
  const auto error_of = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "nothing was thrown";
  };
  const std::vector<std::pair<Conv2dOptions, std::string>> wrong{
      {Conv2dOptions(4, 6, 3).groups(3), "groups must divide in_channels = 4 and out_channels = 6, got 3"},
      {Conv2dOptions(0, 6, 3), "in_channels must be at least 1"},
      {Conv2dOptions(4, 6, 0), "kernel_size must be at least 1"},
      {Conv2dOptions(4, 6, 3).padding(-1), "padding must be at least 0"},
      {Conv2dOptions(4, 6, 3).padding(torch::kSame).stride(2), "stride must be 1 where padding is torch::kSame"},
  };
  for (const auto& [options, message] : wrong) {
    EXPECT_NE(error_of([&options = options] { layer_of(options); }).find(message), std::string::npos) << message;
  }
  auto layer = layer_of(Conv2dOptions(4, 6, 3));
  EXPECT_NE(error_of([&] { layer->forward(torch::randn({2, 3, 5, 5}, torch::kDouble)); }).find("input must have shape"),
            std::string::npos);
  EXPECT_NE(error_of([&] { dn::SparseConv2d::from_dense(nullptr); }).find("conv must be"), std::string::npos);
  std::ostringstream text;
  layer->pretty_print(text);
  EXPECT_NE(text.str().find("SparseConv2d(4, 6, kernel_size=[3, 3], stride=[1, 1], groups=1, bias=true, nnz=86"),
            std::string::npos)
      << text.str();
}

}  // namespace
