#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include <array>

#include "streams.h"

namespace cuda_on_host {
namespace {

struct Generator final : c10::GeneratorImpl {
  explicit Generator(int device)
      : GeneratorImpl(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)),
                      c10::DispatchKeySet(c10::DispatchKey::CUDA)),
        behind(at::detail::createCPUGenerator()) {}
  void set_current_seed(std::uint64_t seed) override { behind.set_current_seed(seed); }
  void set_offset(std::uint64_t offset) override { behind.set_offset(offset); }
  std::uint64_t get_offset() const override { return behind.get_offset(); }
  std::uint64_t current_seed() const override { return behind.current_seed(); }
  std::uint64_t seed() override { return behind.seed(); }
  void set_state(const c10::TensorImpl& state) override { behind.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return behind.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override {
    auto* copy = new Generator(device().index());
    copy->behind = behind.clone();
    return copy;
  }

  at::Generator behind;
};

int index_of(int device) { return device < 0 ? current_device() : device; }

}  // namespace

at::Generator new_generator(int device) { return at::make_generator<Generator>(index_of(device)); }

const at::Generator& default_generator(int device) {
  static const std::array<at::Generator, kDevices> each{new_generator(0), new_generator(1)};
  return each.at(index_of(device));
}

at::Generator behind(const at::Generator& generator) {
  const auto* ours = dynamic_cast<const Generator*>(generator.unsafeGetGeneratorImpl());
  return ours != nullptr ? ours->behind : at::Generator();
}

}  // namespace cuda_on_host
