// The layer and the rewiring for LibTorch. That they agree with Python's bit by bit is tests/python/test_cpp.py's.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <torch/utils.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "nn/dendnorm.h"

namespace {

namespace dn = dendnorm::nn;
using torch::Tensor;
using Edge = std::pair<int64_t, int64_t>;

dn::SparseLinear layer_of(const dn::NormChoice& norm, torch::Dtype dtype = torch::kFloat, int64_t seed = 1) {
  return dn::SparseLinear(dn::SparseLinearOptions(9, 7).density(0.4).norm(norm).seed(seed).dtype(dtype));
}

std::vector<Edge> edges_of(const dn::SparseLinearImpl& layer) {
  const auto [row, col] = layer.edges();
  std::vector<Edge> edges;
  for (int64_t k = 0; k < layer.nnz(); ++k) edges.emplace_back(row[k].item<int64_t>(), col[k].item<int64_t>());
  return edges;
}

std::vector<Edge> pairs(const dendnorm::Edges& edges) {
  std::vector<Edge> found;
  for (int64_t k = 0; k < edges.row.numel(); ++k) {
    found.emplace_back(edges.row[k].item<int64_t>(), edges.col[k].item<int64_t>());
  }
  return found;
}

std::map<Edge, double> by_edge(const dn::SparseLinearImpl& layer, const Tensor& values) {
  std::map<Edge, double> found;
  const auto edges = edges_of(layer);
  for (std::size_t k = 0; k < edges.size(); ++k) found[edges[k]] = values[static_cast<int64_t>(k)].item<double>();
  return found;
}

// The message of the c10::Error that `call` throws.
std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "nothing was thrown";
}

bool holds(const std::string& text, const std::vector<std::string>& parts) {
  std::size_t from = 0;
  for (const std::string& part : parts) {
    from = text.find(part, from);
    if (from == std::string::npos) return false;
  }
  return true;
}

const std::vector<std::string> kNorms{"none", "l0", "l0-variable", "lp:2", "lp-variable:3.7", "weight_norm", "joint"};

// w_i = (e_i / D_i) v_i, D_i = n_i^a ||v_i||_p^b, and the exact gradients, in plain loops.
TEST(SparseLinear, ValuesAndGradientsAreThoseOfTheFormula) {
  for (const std::string& name : kNorms) {
    auto layer = layer_of(name, torch::kDouble);
    const Tensor x = torch::randn({5, 9}, torch::kDouble).requires_grad_(), r = torch::randn({5, 7}, torch::kDouble);
    const Tensor y = layer->forward(x);
    (y * r).sum().backward();
    const double a = layer->norm->options.a(), b = layer->norm->options.b(), p = layer->norm->options.p();
    const Tensor& e = layer->norm->excitability;
    const auto edges = edges_of(*layer);
    const Tensor grad_w = r.t().mm(x.detach());  // dC/dw of a dense layer
    Tensor dense = torch::zeros({7, 9}, torch::kDouble), want_e = torch::zeros({7}, torch::kDouble);
    for (int64_t i = 0; i < 7; ++i) {
      double n = 0, power = 0, dot = 0;
      for (std::size_t k = 0; k < edges.size(); ++k) {
        if (edges[k].first != i) continue;
        const double v = layer->weight[static_cast<int64_t>(k)].item<double>();
        ++n;
        power += std::pow(std::fabs(v), p);
        dot += grad_w[i][edges[k].second].item<double>() * v;
      }
      if (n == 0) continue;
      const double d = std::pow(n, a) * std::pow(power, b / p);
      const double scale = (e.defined() ? (e.dim() == 0 ? e : e[i]).item<double>() : 1.0) / d;
      want_e[i] = dot / d;
      for (std::size_t k = 0; k < edges.size(); ++k) {
        if (edges[k].first != i) continue;
        const auto at = static_cast<int64_t>(k);
        const double v = layer->weight[at].item<double>(), g = grad_w[i][edges[k].second].item<double>();
        dense[i][edges[k].second] = scale * v;
        const double want = scale * (g - b * dot / power * std::copysign(std::pow(std::fabs(v), p - 1), v));
        EXPECT_NEAR(layer->weight.grad()[at].item<double>(), want, 1e-10 * (1 + std::fabs(want))) << name;
      }
    }
    EXPECT_TRUE(torch::allclose(y, x.mm(dense.t()) + layer->bias, 1e-11, 1e-11)) << name;
    EXPECT_TRUE(torch::allclose(x.grad(), r.mm(dense), 1e-11, 1e-11)) << name;
    EXPECT_TRUE(torch::allclose(layer->bias.grad(), r.sum(0), 1e-11, 1e-11)) << name;
    EXPECT_TRUE(torch::allclose(layer->to_dense()->weight, dense, 1e-12, 1e-12)) << name;
    if (e.defined()) {
      EXPECT_TRUE(torch::allclose(e.grad(), e.dim() == 0 ? want_e.sum() : want_e, 1e-10, 1e-10)) << name;
    }
  }
}

TEST(SparseLinear, ASharedExcitabilityIsListedOnceAndItsGradientSummed) {
  const auto norm = dn::norms::l0(false, 25.0);
  auto first = layer_of(norm), second = layer_of(norm, torch::kFloat, 2);
  torch::nn::Sequential model(first, second);
  EXPECT_EQ(model->parameters().size(), 5);  // two weights, two biases, one s
  EXPECT_EQ(dn::state_dict(*model).keys(),
            (std::vector<std::string>{"0.weight", "0.bias", "0.ccol_indices", "0.row_indices", "0.pattern_mark",
                                      "0.norm.excitability", "1.weight", "1.bias", "1.ccol_indices", "1.row_indices",
                                      "1.pattern_mark", "1.norm.excitability"}));
  const Tensor x = torch::rand({4, 9});
  first->forward(x).sum().backward();
  const Tensor alone = norm->excitability.grad().clone();
  norm->excitability.mutable_grad() = Tensor();
  second->forward(x).sum().backward();
  const Tensor other = norm->excitability.grad().clone();
  norm->excitability.mutable_grad() = Tensor();
  (first->forward(x).sum() + second->forward(x).sum()).backward();
  EXPECT_TRUE(torch::allclose(norm->excitability.grad(), alone + other));
}

TEST(SparseLinear, AClonedLayerHasItsOwnMemoryAndTheSameResults) {
  auto layer = layer_of("joint", torch::kDouble);
  layer->bias.requires_grad_(false);
  const auto copy = std::dynamic_pointer_cast<dn::SparseLinearImpl>(layer->clone());
  const Tensor x = torch::rand({3, 9}, torch::kDouble);
  EXPECT_TRUE(torch::equal(copy->forward(x), layer->forward(x)));
  EXPECT_FALSE(copy->bias.requires_grad());
  EXPECT_EQ(copy->parameters().size(), 3);
  for (const auto& item : dn::state_dict(*layer)) {
    EXPECT_NE(dn::state_dict(*copy)[item.key()].data_ptr(), item.value().data_ptr()) << item.key();
  }
}

TEST(SparseLinear, DtypesKeepValuesIn32BitsAndIndicesInteger) {
  auto layer = layer_of("joint");
  layer->to(torch::kHalf);
  EXPECT_EQ(layer->weight.scalar_type(), torch::kFloat);
  EXPECT_EQ(layer->forward(torch::rand({2, 9}, torch::kHalf)).scalar_type(), torch::kHalf);
  layer->to(torch::kDouble);
  EXPECT_EQ(layer->norm->excitability.scalar_type(), torch::kDouble);
  EXPECT_EQ(layer->row_indices.scalar_type(), torch::kInt);
  EXPECT_EQ(layer->forward(torch::rand({2, 9}, torch::kDouble)).sizes(), (std::vector<int64_t>{2, 7}));
  EXPECT_TRUE(holds(error_of([&] { layer->to(torch::kLong); }), {"dtype", "float32", "Long"}));
}

TEST(SparseLinear, ConversionKeepsWhatTheDenseLayerComputes) {
  torch::nn::Linear linear(9, 7);
  const Tensor x = torch::rand({4, 9});
  for (const std::string& name : kNorms) {
    if (name == "lp:2") continue;  // one length for all rows: cannot represent them
    const auto layer = dn::SparseLinear::from_dense(linear, std::nullopt, name);
    EXPECT_EQ(layer->nnz(), 63);
    EXPECT_TRUE(torch::allclose(dn::SparseLinear(layer)->forward(x), linear->forward(x), 1e-4, 1e-5)) << name;
  }
  EXPECT_TRUE(holds(error_of([&] { dn::SparseLinear::from_dense(linear, std::nullopt, "lp:2"); }),
                    {"norm 'lp:2'", "every row", "lp-variable"}));
}

TEST(SparseLinear, AWrongCallIsNamed) {
  const auto options = [] { return dn::SparseLinearOptions(6, 4); };
  const auto ints = [](std::vector<int64_t> values) { return torch::tensor(values, torch::kInt); };
  const std::vector<std::pair<std::function<void()>, std::vector<std::string>>> calls{
      {[&] { dn::SparseLinear(6, 4, 1.5); }, {"density", "(0, 1]", "1.5"}},
      {[&] { dn::SparseLinear(6, 4, std::nan("")); }, {"density", "(0, 1]", "nan"}},
      {[&] { dn::SparseLinear{options()}; }, {"density and nnz", "neither"}},
      {[&] { dn::SparseLinear(options().density(0.5).nnz(3)); }, {"density and nnz", "0.5", "3"}},
      {[&] { dn::SparseLinear(options().nnz(25)); }, {"nnz", "24]", "25"}},
      {[&] { dn::SparseLinear(0, 4, 0.5); }, {"in_features", "[1, ", "0"}},
      {[&] { dn::SparseLinear(options().nnz(3).seed(-1)); }, {"seed", "[0, 2^63)", "-1"}},
      {[&] { dn::SparseLinear(options().nnz(3).dtype(torch::kHalf)); }, {"dtype", "float32", "Half"}},
      {[&] { dn::SparseLinear(options().nnz(3).norm("l1")); }, {"norm", "lp:P", "'l1'"}},
      {[&] { dn::SparseLinear(options().nnz(3).norm("lp:two")); }, {"p in norm", "number", "lp:two"}},
      {[&] { dn::norms::lp(0.5); }, {"p", "at least 1", "0.5"}},
      {[&] { dn::norms::l0(false, std::nan("")); }, {"s", "finite", "nan"}},
      {[&] { dn::SparseLinear::from_csr(ints({0, 2, 3}), ints({2, 0, 1}), torch::ones(3), {2, 3}); },
       {"col_indices", "ascending"}},
      {[&] { dn::SparseLinear::from_csr(ints({0, 2, 3}), ints({0, 2, 1}), torch::ones(2), {2, 3}); },
       {"values", "(3,)", "got (2,)"}},
      {[&] { layer_of("l0")->forward(torch::ones({2, 5})); }, {"input", "9", "5"}},
      {[&] { dendnorm::SET(torch::nn::Linear(2, 2)); }, {"model", "SparseLinear", "none"}},
      {[&] { dendnorm::SET(layer_of("l0"), dendnorm::SETOptions().zeta(1.5)); }, {"zeta", "[0, 1]", "1.5"}},
      {[&] { dn::read_state_dict("/no/such/file"); }, {"path", "readable", "/no/such/file"}},
  };
  for (const auto& [call, parts] : calls) {
    const std::string message = error_of(call);
    EXPECT_TRUE(holds(message, parts)) << message;
  }
}

// ---- Files ----

TEST(StateDict, ArchivesOfTorchSaveHoldEverything) {
  const auto norm = dn::norms::joint();
  torch::nn::Sequential model(layer_of(norm)), same(layer_of(norm, torch::kFloat, 2));
  const auto fresh = [] { return torch::nn::Sequential(layer_of("joint", torch::kFloat, 8)); };
  for (auto& saved : {model, same}) {  // the second does not own its norm
    std::stringstream stream;
    torch::save(saved, stream);
    auto loaded = fresh();
    const void* before = loaded->parameters()[0].data_ptr();
    torch::load(loaded, stream);
    EXPECT_EQ(loaded->parameters()[0].data_ptr(), before);
    const auto mine = dn::state_dict(*loaded);
    for (const auto& item : dn::state_dict(*saved)) EXPECT_TRUE(torch::equal(mine[item.key()], item.value()));
    const Tensor x = torch::rand({2, 9});
    EXPECT_TRUE(torch::equal(loaded->forward(x), torch::nn::Sequential(saved)->forward(x)));
  }
}

TEST(StateDict, WhatDoesNotFitLeavesTheModuleAsItWas) {
  auto layer = layer_of("joint");
  const auto other = layer_of("joint", torch::kFloat, 5);
  const auto copied = [](const dn::SparseLinear& from) {
    dn::StateDict state;
    for (const auto& item : dn::state_dict(*from)) state.insert(item.key(), item.value().detach().clone());
    return state;
  };
  const auto before = copied(layer);
  const std::vector<std::pair<std::function<void(dn::StateDict&)>, std::vector<std::string>>> damages{
      {[](auto& s) { s["row_indices"][0] = -1; }, {"row_indices", "-1"}},
      {[](auto& s) { s["row_indices"].zero_(); }, {"row_indices", "ascending"}},
      {[](auto& s) { s["weight"] = s["weight"].slice(0, 1); }, {"weight", "nnz=24"}},
      {[](auto& s) { s["bias"] = torch::ones(5); }, {"bias", "[7]", "[5]"}},
      {[](auto& s) { s["norm.excitability"] = torch::ones(5); }, {"norm.excitability", "[7]", "[5]"}},
      {[](auto& s) { s.insert("more", torch::ones(1)); }, {"more"}},
      {[](auto& s) { s["pattern_mark"][3] += 1; }, {"pattern_mark", "of another"}},
      {[](auto& s) { s["pattern_mark"] = s["pattern_mark"].slice(0, 1); }, {"pattern_mark", "[8]", "[7]"}},
  };
  for (const auto& [damage, parts] : damages) {
    auto state = copied(other);
    damage(state);
    const std::string message = error_of([&state = state, &layer] { dn::load_state_dict(*layer, state); });
    EXPECT_TRUE(holds(message, parts)) << message;
    for (const auto& item : copied(layer)) EXPECT_TRUE(torch::equal(*before.find(item.key()), item.value()));
  }
}

TEST(StateDict, AMarkTellsPatternsApartAndMayBeAbsent) {
  auto layer = layer_of("joint");
  const auto same = layer_of("joint"), other = layer_of("joint", torch::kFloat, 5);
  const Tensor mark = dn::state_dict(*layer)["pattern_mark"];
  EXPECT_EQ(mark.scalar_type(), torch::kDouble);
  EXPECT_EQ(mark.sizes(), (std::vector<int64_t>{8}));
  EXPECT_TRUE(torch::equal(mark, dn::state_dict(*same)["pattern_mark"]));
  EXPECT_FALSE(torch::equal(mark, dn::state_dict(*other)["pattern_mark"]));
  dn::StateDict old;  // as version 0.1 wrote it
  for (const auto& item : dn::state_dict(*other)) {
    if (item.key() != "pattern_mark") old.insert(item.key(), item.value());
  }
  dn::load_state_dict(*layer, old);
  EXPECT_TRUE(torch::equal(layer->row_indices, other->row_indices));
  // Whole numbers below 2^8 are exact in 16 bits.
  dn::StateDict cast;
  for (const auto& item : dn::state_dict(*same)) {
    cast.insert(item.key(), item.key() == "pattern_mark" ? item.value().to(torch::kBFloat16) : item.value());
  }
  dn::load_state_dict(*layer, cast);
  EXPECT_TRUE(torch::equal(layer->row_indices, same->row_indices));
}

TEST(StateDict, DamagedFilesAreRefused) {
  const std::string path = testing::TempDir() + "dendnorm_state.safetensors";
  const auto layer = layer_of("joint");
  dn::save_state_dict(*layer, path);
  std::ifstream file(path, std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(dn::read_state_dict(path).size(), 6);
  const auto refused = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    return holds(error_of([&] { dn::read_state_dict(path); }), {"path must name", path});
  };
  for (const std::size_t length : {std::size_t{0}, std::size_t{7}, std::size_t{60}, whole.size() - 1}) {
    EXPECT_TRUE(refused(whole.substr(0, length))) << length;
  }
  for (const auto& [from, to] : {std::pair("F32", "F33"), std::pair("[7]", "[8]"), std::pair("\"shape\"", "\"shade\""),
                                 std::pair("{\"weight", "[\"weight"), std::pair("PK", "PK")}) {
    std::string damaged = whole;
    const std::size_t at = damaged.find(from);
    if (at == std::string::npos) {
      damaged = "PK\3\4" + damaged;  // a broken zip
    } else {
      damaged.replace(at, std::string(from).size(), to);
    }
    EXPECT_TRUE(refused(damaged)) << from;
  }
  std::remove(path.c_str());
}

TEST(StateDict, AFileGetsTheModeOfTheUmaskOrKeepsItsOwn) {
  const std::string path = testing::TempDir() + "dendnorm_mode.safetensors";
  const auto layer = layer_of("joint");
  const auto mode = [&] {
    struct stat found;
    EXPECT_EQ(::stat(path.c_str(), &found), 0);
    return found.st_mode & 07777;
  };
  std::remove(path.c_str());
  for (const mode_t mask : {mode_t{022}, mode_t{077}, mode_t{002}}) {
    const mode_t before = ::umask(mask);
    dn::save_state_dict(*layer, path);
    ::umask(before);
    EXPECT_EQ(mode(), 0666u & ~mask);
    std::remove(path.c_str());
  }
  dn::save_state_dict(*layer, path);
  ASSERT_EQ(::chmod(path.c_str(), 0604), 0);
  dn::save_state_dict(*layer, path);
  EXPECT_EQ(mode(), 0604u);
  EXPECT_EQ(dn::read_state_dict(path).size(), 6);
  std::remove(path.c_str());
}

TEST(StateDict, AFileThatCannotBeWrittenIsNamedWithTheReasonAndNothingIsLeft) {
  const std::string folder = testing::TempDir() + "dendnorm_unwritable", path = folder + "/state.safetensors";
  std::filesystem::remove_all(folder);
  const auto layer = layer_of("joint");
  const auto save = [&](const std::string& to) { return error_of([&] { dn::save_state_dict(*layer, to); }); };
  EXPECT_TRUE(holds(save(path), {"path", "writable folder", path, "No such file"})) << save(path);
  std::filesystem::create_directories(path + "/in the way");
  EXPECT_TRUE(holds(save(path), {"path", "replaced", path, "directory"})) << save(path);
  std::filesystem::remove_all(path);
  std::ofstream(path) << "what was there";
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{64, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = save(path);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(holds(message, {"path", "writable", path, "too large"})) << message;
  std::ifstream file(path);
  EXPECT_EQ((std::string{std::istreambuf_iterator<char>(file), {}}), "what was there");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::remove_all(folder);
}

// ---- Rewiring ----

TEST(SET, TheWeakestGoAndAsManyComeInPlace) {
  for (int64_t seed = 0; seed < 12; ++seed) {
    auto layer = layer_of(kNorms[seed % kNorms.size()], seed % 2 == 0 ? torch::kFloat : torch::kDouble, seed);
    dendnorm::SET rewire(layer, dendnorm::SETOptions().zeta(0.3).seed(seed));
    for (int step = 1; step <= 4; ++step) {
      const auto before = by_edge(*layer, layer->weight), strength = by_edge(*layer, layer->effective_weight().abs());
      const void *values = layer->weight.data_ptr(), *rows = layer->row_indices.data_ptr();
      const auto report = rewire.step();
      ASSERT_EQ(report.layers.size(), 1);
      const auto& done = report.layers[0];
      EXPECT_EQ(report.step, step);
      EXPECT_EQ(done.k, 8);  // 0.3 * 25 = 7.5, half to even
      EXPECT_EQ(layer->nnz(), 25);
      EXPECT_EQ(layer->weight.data_ptr(), values);
      EXPECT_EQ(layer->row_indices.data_ptr(), rows);
      EXPECT_EQ(layer->in_degrees().sum().item<int64_t>(), 25);
      const auto removed = pairs(done.removed), grown = pairs(done.grown);
      const auto after = by_edge(*layer, layer->weight);
      ASSERT_EQ(after.size(), 25);
      std::set<Edge> gone(removed.begin(), removed.end());
      EXPECT_EQ(gone.size(), 8);
      double strongest = 0, weakest = INFINITY;
      for (const auto& [edge, size] : strength) {
        if (gone.count(edge) != 0) {
          strongest = std::max(strongest, size);
        } else {
          weakest = std::min(weakest, size);
          EXPECT_EQ(after.at(edge), before.at(edge));
        }
      }
      EXPECT_LE(strongest, weakest);
      for (const Edge& edge : grown)
        EXPECT_TRUE(after.count(edge) == 1 && (before.count(edge) == 0 || gone.count(edge)));
    }
  }
}

template <class Optimizer, class Options>
void expect_state_moves(const Options& options, const std::function<std::vector<Tensor>(const void*, Optimizer&)>& of) {
  torch::manual_seed(0);
  auto layer = layer_of("l0");
  Optimizer optimizer(layer->parameters(), options);
  dendnorm::SET rewire(layer, optimizer, dendnorm::SETOptions().zeta(0.3));
  for (int i = 0; i < 3; ++i) {
    optimizer.zero_grad();
    layer->forward(torch::randn({8, 9})).square().sum().backward();
    optimizer.step();
  }
  const auto tensors = of(layer->weight.unsafeGetTensorImpl(), optimizer);
  ASSERT_FALSE(tensors.empty());
  std::vector<std::map<Edge, double>> before;
  for (const Tensor& tensor : tensors) before.push_back(by_edge(*layer, tensor));
  const auto grad = by_edge(*layer, layer->weight.grad());
  const auto report = rewire.step();
  const auto grown = pairs(report.layers[0].grown);
  const std::set<Edge> fresh(grown.begin(), grown.end());
  const auto expect_moved = [&](const std::map<Edge, double>& old, const Tensor& now) {
    for (const auto& [edge, value] : by_edge(*layer, now)) {
      EXPECT_EQ(value, fresh.count(edge) != 0 ? 0.0 : old.at(edge)) << typeid(Optimizer).name();
    }
  };
  for (std::size_t i = 0; i < tensors.size(); ++i) expect_moved(before[i], tensors[i]);
  expect_moved(grad, layer->weight.grad());
}

TEST(SET, TheOptimizersStateMovesAlong) {
  using namespace torch::optim;
  const auto state = [](auto& optimizer, const void* key) {
    return optimizer.state().at(const_cast<void*>(key)).get();
  };
  expect_state_moves<SGD, SGDOptions>(SGDOptions(0.01).momentum(0.9), [&](const void* key, SGD& optimizer) {
    return std::vector<Tensor>{static_cast<SGDParamState*>(state(optimizer, key))->momentum_buffer()};
  });
  expect_state_moves<Adam, AdamOptions>(AdamOptions(0.01).amsgrad(true), [&](const void* key, Adam& optimizer) {
    auto* found = static_cast<AdamParamState*>(state(optimizer, key));
    return std::vector<Tensor>{found->exp_avg(), found->exp_avg_sq(), found->max_exp_avg_sq()};
  });
  expect_state_moves<AdamW, AdamWOptions>(AdamWOptions(0.01), [&](const void* key, AdamW& optimizer) {
    auto* found = static_cast<AdamWParamState*>(state(optimizer, key));
    return std::vector<Tensor>{found->exp_avg(), found->exp_avg_sq()};
  });
  expect_state_moves<RMSprop, RMSpropOptions>(
      RMSpropOptions(0.01).momentum(0.5).centered(true), [&](const void* key, RMSprop& optimizer) {
        auto* found = static_cast<RMSpropParamState*>(state(optimizer, key));
        return std::vector<Tensor>{found->square_avg(), found->momentum_buffer(), found->grad_avg()};
      });
  expect_state_moves<Adagrad, AdagradOptions>(AdagradOptions(0.01), [&](const void* key, Adagrad& optimizer) {
    return std::vector<Tensor>{static_cast<AdagradParamState*>(state(optimizer, key))->sum()};
  });
}

TEST(SET, AStepThatFailsHasChangedNothing) {
  auto first = layer_of("l0"), second = layer_of("l0", torch::kFloat, 2);
  torch::nn::Sequential model(first, second);
  dendnorm::SET rewire(model, dendnorm::SETOptions().zeta(0.5));
  {
    torch::NoGradGuard no_grad;
    second->weight[3] = std::nan("");
  }
  const auto edges = edges_of(*first);
  const Tensor values = first->weight.detach().clone();
  EXPECT_TRUE(holds(error_of([&] { rewire.step(); }), {"layer '1'", "nan"}));
  EXPECT_EQ(edges_of(*first), edges);
  EXPECT_TRUE(torch::equal(first->weight, values));
  EXPECT_EQ(rewire.state_dict().at("steps"), 0);
}

class DrawsOtherwise : public dendnorm::SET {
 public:
  using SET::SET;
  std::function<Tensor(const Tensor&)> change;  // of the values that SET draws

 protected:
  Tensor draw(dn::SparseLinearImpl& layer, int64_t k, int64_t step, int64_t index, torch::Device device) override {
    return change(SET::draw(layer, k, step, index, device));
  }
};

TEST(SET, ValuesThatAVariantDrawsAreCheckedBeforeAnythingIsWritten) {
  const std::vector<std::pair<std::function<Tensor(const Tensor&)>, std::vector<std::string>>> draws{
      {[](const Tensor&) { return Tensor(); }, {"(12,)", "none"}},
      {[](const Tensor& values) { return values.slice(0, 1); }, {"(12,)", "(11,)"}},
      {[](const Tensor& values) { return values.unsqueeze(1); }, {"(12,)", "(12, 1)"}},
      {[](const Tensor& values) { return values.to(torch::kDouble); }, {"float32 tensor", "float64"}},
      {[](const Tensor& values) { return values.to_sparse(); }, {"dense", "Sparse"}},
      {[](const Tensor& values) { return values.to(torch::kMeta); }, {"on cpu", "meta"}},
      {[](const Tensor& values) { return values.index_fill(0, torch::tensor({3}), std::nan("")); }, {"finite", "nan"}},
      {[](const Tensor& values) { return values.index_fill(0, torch::tensor({3}), INFINITY); }, {"finite", "infinite"}},
  };
  for (const auto& [change, parts] : draws) {
    auto first = layer_of("l0"), second = layer_of("l0", torch::kFloat, 2);
    DrawsOtherwise rewire(torch::nn::Sequential(first, second), dendnorm::SETOptions().zeta(0.5));
    // The first layer's are right: it must not have been written when the second's turn out to be wrong.
    int calls = 0;
    rewire.change = [&calls, &change = change](const Tensor& values) { return calls++ == 0 ? values : change(values); };
    const auto edges = edges_of(*first), others = edges_of(*second);
    const Tensor values = first->weight.detach().clone(), other_values = second->weight.detach().clone();
    const std::string message = error_of([&] { rewire.step(); });
    EXPECT_TRUE(holds(message, {"layer '1'", "values of new connections must"})) << message;
    EXPECT_TRUE(holds(message, parts)) << message;
    EXPECT_EQ(edges_of(*first), edges);
    EXPECT_EQ(edges_of(*second), others);
    EXPECT_TRUE(torch::equal(first->weight, values) && torch::equal(second->weight, other_values));
    EXPECT_EQ(rewire.state_dict().at("steps"), 0);
  }
  auto layer = layer_of("l0");
  DrawsOtherwise rewire(layer, dendnorm::SETOptions().zeta(0.5));
  rewire.change = [](const Tensor& values) { return torch::full({2 * values.numel()}, 7.0).slice(0, 0, {}, 2); };
  rewire.step();  // any strides will do
  EXPECT_EQ((layer->weight == 7).sum().item<int64_t>(), 12);
}

TEST(SET, GoesOnFromItsStateAndRefusesAnOptimizerThatCannotFollow) {
  auto one = layer_of("l0"), two = layer_of("l0");
  dendnorm::SET first(one, dendnorm::SETOptions().seed(3)), second(two);
  first.step();
  const auto state = first.state_dict();
  second.load_state_dict({{"seed", 3}, {"steps", 0}, {"calls", 0}});
  second.step();
  EXPECT_EQ(second.state_dict(), state);
  first.step();
  second.step();
  EXPECT_EQ(edges_of(*one), edges_of(*two));
  EXPECT_TRUE(torch::equal(one->weight, two->weight));
  torch::nn::Linear elsewhere(2, 2);
  torch::optim::SGD optimizer(elsewhere->parameters(), 0.1);
  EXPECT_TRUE(holds(error_of([&] { dendnorm::SET(one, optimizer); }), {"optimizer must hold the weight"}));
  torch::optim::LBFGS flat(one->parameters(), torch::optim::LBFGSOptions(0.1));
  EXPECT_TRUE(
      holds(error_of([&] { dendnorm::SET(one, flat); }), {"optimizer must", "parameter by parameter", "LBFGS"}));
}

}  // namespace
