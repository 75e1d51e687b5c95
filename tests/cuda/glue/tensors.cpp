// Ops of PyTorch on a device that the host stands in for: each runs as the CPU's op on the same memory, after what
// waits in the current stream. As on a device, tensors of two devices are refused, and so is a generator of the CPU's.
#include <ATen/CPUFunctions.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/set_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <cstring>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "generator.h"
#include "streams.h"

namespace cuda_on_host {
namespace {

using at::Tensor;
using c10::Device, c10::DeviceType, c10::IValue;

int index_of(Device device) { return device.has_index() ? device.index() : current_device(); }
void catch_up(Device device) { finish(current_stream(index_of(device))); }

// The tensors of one call, as tensors of the CPU: same memory, and tensors that share a storage still do.
class Mirrors {
 public:
  Tensor of(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    const c10::Storage& storage = tensor.storage();
    auto at = storages_.find(storage.unsafeGetStorageImpl());
    if (at == storages_.end()) {
      c10::Storage same(c10::Storage::use_byte_size_t(), storage.nbytes(),
                        c10::DataPtr(storage.mutable_data(), Device(DeviceType::CPU)), c10::GetCPUAllocator(), true);
      at = storages_.emplace(storage.unsafeGetStorageImpl(), std::move(same)).first;
    }
    Tensor mirror = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(at->second), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    auto* impl = mirror.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    if (tensor.dim() == 0) impl->set_wrapped_number(tensor.unsafeGetTensorImpl()->is_wrapped_number());
    impl->_set_conj(tensor.is_conj());
    return mirror;
  }

 private:
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages_;
};

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool> pin_memory) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::DeviceGuard guard(device.value_or(Device(DeviceType::CUDA)));
  return at::detail::empty_strided_generic(size, stride, c10::GetAllocator(DeviceType::CUDA),
                                           c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool> pin_memory, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  const c10::DeviceGuard guard(device.value_or(Device(DeviceType::CUDA)));
  return at::detail::empty_generic(size, c10::GetAllocator(DeviceType::CUDA),
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

void copy_values(Tensor to, const Tensor& from) { at::native::copy_(to, from, false); }

// Between devices too. What the host has to read is there when the call returns, unless it need not wait.
Tensor& copy(Tensor& self, const Tensor& source, bool non_blocking) {
  const Device device = self.is_cuda() ? self.device() : source.device();
  const bool pinned = (self.is_cuda() || self.is_pinned()) && (source.is_cuda() || source.is_pinned());
  if (self.is_cuda() != source.is_cuda() && !(non_blocking && pinned)) about_to_wait("copy_");
  const c10::DeviceGuard guard(device);
  catch_up(device);
  if (self.is_cuda() && source.is_cuda() && source.device() != self.device()) catch_up(source.device());
  Mirrors mirrors;
  const Tensor to = mirrors.of(self), from = mirrors.of(source);
  if (non_blocking && !self.is_cuda() && self.is_pinned() && self.is_contiguous() && from.is_contiguous() &&
      self.dtype() == from.dtype()) {
    enqueue(handle_of(current_stream(index_of(device))), [to = self.mutable_data_ptr(), from = from.const_data_ptr(),
                                                          bytes = self.nbytes()] { std::memcpy(to, from, bytes); });
  } else if (capturing()) {
    enqueue(handle_of(current_stream(index_of(device))), [to, from] { copy_values(to, from); });
  } else {
    copy_values(to, from);
  }
  return self;
}

Tensor& set_source(Tensor& self, at::Storage source, std::int64_t offset, c10::IntArrayRef size,
                   c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  std::vector<std::int64_t> strides(stride.begin(), stride.end());
  if (strides.size() != size.size()) {
    strides.assign(size.size(), 1);
    for (std::size_t d = size.size(); d-- > 1;) strides[d - 1] = strides[d] * std::max<std::int64_t>(size[d], 1);
  }
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, strides, offset);
  return self;
}
Tensor& set_storage(Tensor& self, at::Storage source) {
  const auto count = static_cast<std::int64_t>(source.nbytes() / self.itemsize());
  return set_source(self, std::move(source), 0, {count}, {1});
}
Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_source(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}
Tensor& set_nothing(Tensor& self) {
  return set_source(self,
                    at::detail::empty_generic({0}, c10::GetAllocator(DeviceType::CUDA),
                                              c10::DispatchKeySet(c10::DispatchKey::CUDA), at::kByte, {})
                        .storage(),
                    0, {0}, {1});
}

// An op resized a result, and may have moved it.
void adopt(const Tensor& original, const Tensor& mirror) {
  if (mirror.storage().data() != original.storage().data()) {
    c10::DataPtr memory = c10::GetAllocator(DeviceType::CUDA)->allocate(mirror.storage().nbytes());
    std::memcpy(memory.get(), mirror.storage().data(), mirror.storage().nbytes());
    original.storage().set_data_ptr_noswap(std::move(memory));
    original.storage().set_nbytes(mirror.storage().nbytes());
  }
  if (mirror.sizes() != original.sizes() || mirror.strides() != original.strides() ||
      mirror.storage_offset() != original.storage_offset()) {
    original.unsafeGetTensorImpl()->set_sizes_and_strides(mirror.sizes(), mirror.strides(), mirror.storage_offset());
  }
}

struct Call {
  const c10::OperatorHandle& op;
  std::vector<IValue> given;
  Mirrors mirrors;
  std::vector<std::pair<Tensor, Tensor>> seen;  // tensors of the device, and their mirrors
  std::vector<Tensor> copies;                   // mirrors of the results that have memory of their own, in order
  Device device{DeviceType::CUDA, -1};
  Tensor stranger;  // of another device, and not a number

  Call(const c10::OperatorHandle& of, std::vector<IValue> arguments) : op(of), given(std::move(arguments)) {}

  void look_at(const Tensor& tensor) {
    if (!tensor.defined()) return;
    if (!tensor.is_cuda()) {
      if (tensor.dim() > 0) stranger = tensor;
    } else if (!device.has_index()) {
      device = tensor.device();
    } else if (tensor.device() != device && tensor.dim() > 0) {
      stranger = tensor;
    }
  }
  Tensor mirror(const Tensor& tensor) {
    Tensor same = mirrors.of(tensor);
    if (tensor.defined() && tensor.is_cuda()) seen.emplace_back(tensor, same);
    return same;
  }
  IValue mirror(const IValue& value) {
    if (value.isTensor()) return mirror(value.toTensor());
    if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(mirror(tensor));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
        list.push_back(tensor ? std::optional(mirror(*tensor)) : std::nullopt);
      }
      return list;
    }
    if (value.isDevice()) return Device(DeviceType::CPU);
    if (value.isGenerator()) {
      const at::Generator found = behind(value.toGenerator());
      TORCH_CHECK(found.defined(), "Expected a 'cuda' device type for generator but found 'cpu'");
      return found;
    }
    return value;
  }

  void check() {
    for (const IValue& value : given) {
      if (value.isTensor()) look_at(value.toTensor());
      if (value.isTensorList()) {
        for (const Tensor& tensor : value.toTensorVector()) look_at(tensor);
      }
      if (value.isDevice() && !device.has_index()) device = value.toDevice();
    }
    if (!device.has_index()) device = Device(DeviceType::CUDA, static_cast<c10::DeviceIndex>(current_device()));
    // Indices may lie on the CPU.
    const bool indexes = op.schema().name().find("index") != std::string::npos;
    TORCH_CHECK(!stranger.defined() || indexes,
                "Expected all tensors to be on the same device, but found at least two "
                "devices, ",
                device, " and ", stranger.device(), "! (", op.schema().name(), ")");
  }

  // A result on the device: what was given, a view of it, or a copy.
  Tensor result(const Tensor& from) {
    if (!from.defined()) return from;
    for (const auto& [original, same] : seen) {
      if (same.is_same(from)) return original;
    }
    for (const auto& [original, same] : seen) {
      if (!same.is_alias_of(from)) continue;
      Tensor view = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(original.storage()),
                                                             original.key_set(), from.dtype());
      view.unsafeGetTensorImpl()->set_sizes_and_strides(from.sizes(), from.strides(), from.storage_offset());
      return view;
    }
    const Tensor copied = at::empty_strided(from.sizes(), from.strides(), from.options().device(device));
    copies.push_back(mirrors.of(copied));
    copy_values(copies.back(), from);
    return copied;
  }
  IValue result(const IValue& from) {
    if (from.isTensor()) return result(from.toTensor());
    if (from.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& tensor : from.toTensorVector()) list.push_back(result(tensor));
      return list;
    }
    return from;
  }
};

std::vector<IValue> done(const c10::OperatorHandle& op, const std::vector<IValue>& arguments) {
  torch::jit::Stack stack(arguments);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &stack);
  return stack;
}

// Whether a result lies in the memory of an argument.
bool is_among(const Tensor& result, const std::vector<IValue>& arguments) {
  for (const IValue& value : arguments) {
    if (value.isTensor() && value.toTensor().defined() && value.toTensor().is_alias_of(result)) return true;
  }
  return !result.defined();
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::size_t arguments = op.schema().arguments().size();
  Call call(op, torch::jit::pop(*stack, arguments));
  call.check();
  const c10::DeviceGuard guard(call.device);
  static const std::set<std::string> tells{"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select",
                                           "aten::equal", "aten::is_nonzero"};
  if (tells.contains(op.schema().name())) about_to_wait(op.schema().name().c_str());
  catch_up(call.device);
  std::vector<IValue> mirrored;
  for (const IValue& value : call.given) mirrored.push_back(call.mirror(value));
  // While a graph is captured the op is done for the shapes of its results alone.
  std::vector<Tensor> before;
  if (capturing()) {
    for (const auto& [original, mirror] : call.seen) before.push_back(mirror.clone());
  }
  const std::vector<IValue> found = done(op, mirrored);
  for (const auto& [original, mirror] : call.seen) adopt(original, mirror);
  for (const IValue& value : found) stack->push_back(call.result(value));
  if (!capturing()) return;
  for (std::size_t k = 0; k < before.size(); ++k) copy_values(call.seen[k].second, before[k]);
  enqueue(handle_of(current_stream(index_of(call.device))), [op, mirrored, copies = call.copies] {
    std::size_t next = 0;
    const auto keep = [&](const Tensor& result) {
      if (!is_among(result, mirrored)) copy_values(copies.at(next++), result);
    };
    for (const IValue& value : done(op, mirrored)) {
      if (value.isTensor()) keep(value.toTensor());
      if (value.isTensorList()) {
        for (const Tensor& tensor : value.toTensorVector()) keep(tensor);
      }
    }
  });
}

void record_stream(Tensor&, at::Stream) {}

// Of 16-bit matrices, with the result in the type that they are added up in: only CUDA has it.
Tensor mm_in(const Tensor& self, const Tensor& other, at::ScalarType dtype) {
  return at::mm(self.to(dtype), other.to(dtype));
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy);
  m.impl("set_.source_Storage_storage_offset", set_source);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_", set_nothing);
  m.impl("record_stream", record_stream);
  m.impl("mm.dtype", mm_in);
}

}  // namespace cuda_on_host
