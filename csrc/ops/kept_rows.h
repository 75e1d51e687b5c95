// What derivatives call without the dispatcher, where nobody is between them and a device's kernels: what was measured
// of a layer's rows goes from the forward pass to the backward one, for which the ops' schemas have no place.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <array>

#include "core/norm.h"
#include "ops/layer.h"

namespace dendnorm::ops {

// The ops of a device that pass rows on.
struct RowKeeper {
  // sparse_linear, and into `rows` what its backward pass needs to know of them: undefined where that is nothing.
  at::Tensor (*forward)(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                        at::Tensor& rows) = nullptr;
  // sparse_linear_backward with these rows.
  Tensor4 (*backward)(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                      const OptionalTensor& excitability, const Pattern& pattern, const Norm& norm,
                      std::array<bool, 4> mask, const at::Tensor& rows) = nullptr;
};

// A build without CUDA leaves that of CUDA empty.
extern RowKeeper keeps_on_cpu, keeps_on_cuda;

// Those to which the dispatcher would go straight from below autograd: null where a mode, subclass, transform or tracer
// has a say. Undefined tensors have none, and BackendSelect, which is always included, none in ops that take tensors.
template <class... Tensors>
const RowKeeper* row_keeper(const Tensors&... tensors) {
  const c10::DispatchKeySet of_tensors = (c10::DispatchKeySet() | ... | tensors.key_set());
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  const c10::DispatchKeySet keys = ((of_tensors | local.included_) - local.excluded_) -
                                   c10::autograd_dispatch_keyset_with_ADInplaceOrView - c10::autocast_dispatch_keyset -
                                   c10::DispatchKeySet(c10::DispatchKey::BackendSelect);
  const c10::DispatchKey key = keys.highestPriorityTypeId();
  const RowKeeper* keeper = key == c10::DispatchKey::CPU ? &keeps_on_cpu : &keeps_on_cuda;
  return (key == c10::DispatchKey::CPU || key == c10::DispatchKey::CUDA) && keeper->forward ? keeper : nullptr;
}

}  // namespace dendnorm::ops
