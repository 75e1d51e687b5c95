// Between functions in C++ and the schemas of library.cpp, where a Pattern is listed as its five tensors and a Norm as
// its three numbers.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <array>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core/norm.h"
#include "ops/layer.h"

namespace dendnorm::ops {

// How one argument is listed: as itself, if nothing else is said.
template <class Argument>
struct Listed {
  using Types = std::tuple<Argument>;
  static Types list(Argument argument) { return {argument}; }
  static Argument pack(Argument argument) { return argument; }
};

template <>
struct Listed<const Pattern&> {
  using Types =
      std::tuple<const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&>;
  static Types list(const Pattern& p) { return {p.ccol_indices, p.row_indices, p.crow_indices, p.col_indices, p.perm}; }
  static Pattern pack(const at::Tensor& ccol_indices, const at::Tensor& row_indices, const at::Tensor& crow_indices,
                      const at::Tensor& col_indices, const at::Tensor& perm) {
    return {ccol_indices, row_indices, crow_indices, col_indices, perm};
  }
};

template <>
struct Listed<const Norm&> {
  using Types = std::tuple<double, double, double>;
  static Types list(const Norm& norm) { return {norm.a, norm.b, norm.p}; }
  static Norm pack(double a, double b, double p) { return {a, b, p}; }
};

// Where the types of an argument begin in the list of all.
template <class... Arguments>
constexpr std::size_t begin_of(std::size_t argument) {
  constexpr std::array<std::size_t, sizeof...(Arguments)> sizes{
      std::tuple_size_v<typename Listed<Arguments>::Types>...};
  std::size_t begin = 0;
  for (std::size_t i = 0; i < argument; ++i) begin += sizes[i];
  return begin;
}

// The argument that begins there.
template <class Argument, std::size_t begin, class All>
decltype(auto) packed(const All& all) {
  return [&]<std::size_t... k>(std::index_sequence<k...>) -> decltype(auto) {
    return Listed<Argument>::pack(std::get<begin + k>(all)...);
  }(std::make_index_sequence<std::tuple_size_v<typename Listed<Argument>::Types>>{});
}

template <class Function, class Types>
struct Flattened;

template <class Result, class... Arguments, class... Types>
struct Flattened<Result(Arguments...), std::tuple<Types...>> {
  using Signature = Result(Types...);

  // `function` with its arguments as a schema lists them.
  template <Result (*function)(Arguments...)>
  static Result run(Types... listed) {
    const auto all = std::forward_as_tuple(listed...);
    return [&]<std::size_t... i>(std::index_sequence<i...>) -> Result {
      return function(packed<Arguments, begin_of<Arguments...>(i)>(all)...);
    }(std::index_sequence_for<Arguments...>{});
  }
};

template <class Function>
struct SchemaOf;

template <class Result, class... Arguments>
struct SchemaOf<Result(Arguments...)>
    : Flattened<Result(Arguments...), decltype(std::tuple_cat(std::declval<typename Listed<Arguments>::Types>()...))> {
};

// Registers `function` as a kernel of the op `name`.
template <auto function>
void implement(torch::Library& library, const char* name) {
  using Schema = SchemaOf<std::remove_pointer_t<decltype(function)>>;
  library.impl(name, c10::CompileTimeFunctionPointer<typename Schema::Signature, &Schema::template run<function>>());
}

// An op, called through the dispatcher.
template <class Function>
class Op;

template <class Result, class... Arguments>
class Op<Result(Arguments...)> {
 public:
  explicit Op(const char* name)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").template typed<Signature>()) {}

  Result operator()(Arguments... arguments) const {
    return std::apply([this](auto&&... listed) -> Result { return handle_.call(listed...); },
                      std::tuple_cat(Listed<Arguments>::list(arguments)...));
  }

 private:
  using Signature = typename SchemaOf<Result(Arguments...)>::Signature;

  c10::TypedOperatorHandle<Signature> handle_;
};

}  // namespace dendnorm::ops
