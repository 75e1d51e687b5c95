// The checks and results that the ops of every kind of layer share.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include "ops/layer.h"

namespace dendnorm::ops {

struct LayerSizes {
  c10::SymInt inputs, outputs, connections;  // columns and rows of the pattern
};

LayerSizes check_layer(const char* op, const at::Tensor& weight, const OptionalTensor& excitability,
                       const Pattern& pattern, const Norm& norm);

// Of weight's dtype or, where that is float32, of 16 bits; and on its device.
void check_type_of_activations(const char* op, const char* name, const at::Tensor& activations,
                               const at::Tensor& weight);
void check_bias(const char* op, const at::Tensor& bias, const c10::SymInt& size, const at::Tensor& weight);

at::Tensor empty_vector(const c10::SymInt& size, const at::Tensor& like);
// Undefined where none is given.
at::Tensor empty_excitability(const OptionalTensor& excitability);

}  // namespace dendnorm::ops
