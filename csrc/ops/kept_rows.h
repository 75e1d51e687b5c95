// What derivatives call without the dispatcher, where nobody is between them and the CPU's kernels: the lengths of a
// layer's rows go from the forward pass to the backward one, for which the ops' schemas have no place.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>

#include "core/norm.h"
#include "ops/layer.h"

namespace dendnorm::ops {

// Whether the dispatcher would go from below autograd straight to the CPU's kernels: no mode, subclass, transform or
// tracer has a say. Undefined tensors have none either, and BackendSelect, which is always included, none in ops that
// take tensors.
template <class... Tensors>
bool goes_to_cpu(const Tensors&... tensors) {
  const c10::DispatchKeySet of_tensors = (c10::DispatchKeySet() | ... | tensors.key_set());
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  const c10::DispatchKeySet keys = ((of_tensors | local.included_) - local.excluded_) -
                                   c10::autograd_dispatch_keyset_with_ADInplaceOrView - c10::autocast_dispatch_keyset -
                                   c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
  return keys.highestPriorityTypeId() == c10::DispatchKey::CPU;
}

// The op sparse_linear, and into `rows` what its backward pass needs to know of them: undefined where that is nothing.
at::Tensor sparse_linear_on_cpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                at::Tensor& rows);

// The op sparse_linear_backward with these rows, which may be undefined.
Tensor4 sparse_linear_backward_on_cpu(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                                      const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                                      std::array<bool, 4> mask, const at::Tensor& rows);

}  // namespace dendnorm::ops
