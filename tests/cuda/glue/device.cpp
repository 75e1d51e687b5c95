// Devices of the type CUDA for a PyTorch without CUDA: what its core asks of a backend.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>

#include "generator.h"
#include "streams.h"

namespace cuda_on_host {
namespace {

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;

StreamName name_of(const Stream& stream) { return {stream.device_index(), static_cast<int>(stream.id())}; }
Stream stream_of(StreamName name) {
  return Stream(Stream::UNSAFE, Device(DeviceType::CUDA, static_cast<DeviceIndex>(name.device)), name.number);
}
int index_of(Device device) { return device.has_index() ? device.index() : current_device(); }
Device device_of(int index) { return {DeviceType::CUDA, static_cast<DeviceIndex>(index)}; }

struct GuardImpl final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override { return device_of(current_device()); }
  void setDevice(Device device) const override {
    TORCH_CHECK(device.is_cuda() && index_of(device) < kDevices, "invalid device ordinal: ", device);
    current_device() = index_of(device);
  }
  void uncheckedSetDevice(Device device) const noexcept override { current_device() = index_of(device); }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return kDevices; }

  Stream getStream(Device device) const override { return stream_of(current_stream(index_of(device))); }
  Stream getDefaultStream(Device device) const override { return stream_of({index_of(device), 0}); }
  Stream getNewStream(Device device, int) const override {
    static std::atomic<int> next = 0;
    return stream_of({index_of(device), 1 + next++ % (kStreams - 1)});
  }
  Stream getStreamFromGlobalPool(Device device, bool) const override { return getNewStream(device, 0); }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = getStream(stream.device());
    set_current_stream(name_of(stream));
    return before;
  }
  bool queryStream(const Stream& stream) const override { return is_done(name_of(stream)); }
  void synchronizeStream(const Stream& stream) const override { finish(name_of(stream)); }
  void synchronizeDevice(DeviceIndex index) const override { finish_device(index); }

  void record(void** event, const Stream& stream, DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr) *event = new Event;
    *static_cast<Event*>(*event) = cuda_on_host::record(name_of(stream));
  }
  void block(void* event, const Stream& stream) const override {
    if (event != nullptr) wait_for(name_of(stream), *static_cast<Event*>(event));
  }
  bool queryEvent(void* event) const override { return event == nullptr || is_done(*static_cast<Event*>(event)); }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) finish(*static_cast<Event*>(event));
  }
  double elapsedTime(void* first, void* second, DeviceIndex) const override {
    return *static_cast<Event*>(second)->at - *static_cast<Event*>(first)->at;
  }
  void destroyEvent(void* event, DeviceIndex) const noexcept override { delete static_cast<Event*>(event); }
};
C10_REGISTER_GUARD_IMPL(CUDA, GuardImpl)

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    const int index = current_device();
    if (bytes == 0) return {nullptr, device_of(index)};
    Block* block = cuda_on_host::allocate(bytes, index);
    return {memory_of(block), block, give_back, device_of(index)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    finish_device(current_device());
    std::memcpy(to, from, bytes);
  }
  static void give_back(void* block) { release(static_cast<Block*>(block)); }
};
DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(DeviceType::CUDA, &device_allocator)

// Memory of the host that is said to be pinned.
struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(std::size_t bytes) override {
    void* memory = std::malloc(bytes + 1);
    const std::lock_guard lock(mutex);
    pinned.insert(memory);
    return {memory, memory, give_back, Device(DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
  static void give_back(void* memory) {
    const std::lock_guard lock(mutex);
    pinned.erase(memory);
    std::free(memory);
  }
  static std::mutex mutex;
  static std::set<const void*> pinned;
};
std::mutex PinnedAllocator::mutex;
std::set<const void*> PinnedAllocator::pinned;

}  // namespace

// PyTorch's registry goes by the class's name.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  DeviceIndex deviceCount() const override { return kDevices; }
  DeviceIndex current_device() const override { return static_cast<DeviceIndex>(cuda_on_host::current_device()); }
  DeviceIndex getCurrentDevice() const override { return current_device(); }
  void setCurrentDevice(DeviceIndex index) const override { cuda_on_host::current_device() = index; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    const DeviceIndex before = current_device();
    if (index >= 0) cuda_on_host::current_device() = index;
    return before;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchangeDevice(index); }
  c10::Allocator* getCUDADeviceAllocator() const override { return &device_allocator; }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static PinnedAllocator allocator;
    return &allocator;
  }
  bool isPinnedPtr(const void* memory) const override {
    const std::lock_guard lock(PinnedAllocator::mutex);
    return PinnedAllocator::pinned.contains(memory);
  }
  const at::Generator& getDefaultGenerator(DeviceIndex index) const override { return default_generator(index); }
  at::Generator getNewGenerator(DeviceIndex index) const override { return new_generator(index); }
  void deviceSynchronize(DeviceIndex index) const override { finish_device(index); }
};
using at::CUDAHooksRegistry, at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace cuda_on_host

// For Python, by ctypes.
#define DENDNORM_ON_HOST extern "C" __attribute__((visibility("default")))
DENDNORM_ON_HOST int dendnorm_on_host_device() { return cuda_on_host::current_device(); }
DENDNORM_ON_HOST void dendnorm_on_host_set_device(int index) { cuda_on_host::current_device() = index; }
DENDNORM_ON_HOST std::uint64_t dendnorm_on_host_launches() { return cuda_on_host::launches(); }
DENDNORM_ON_HOST std::uint64_t dendnorm_on_host_allocations() { return cuda_on_host::allocations(); }
DENDNORM_ON_HOST std::uint64_t dendnorm_on_host_questions() { return cuda_on_host::questions(); }
DENDNORM_ON_HOST void dendnorm_on_host_set_stream(int device, int number) {
  cuda_on_host::set_current_stream({device, number});
}
DENDNORM_ON_HOST void dendnorm_on_host_finish(int device) { cuda_on_host::finish_device(device); }
DENDNORM_ON_HOST void dendnorm_on_host_begin_capture(int device) {
  cuda_on_host::begin_capture(cuda_on_host::current_stream(device));
}
DENDNORM_ON_HOST void* dendnorm_on_host_end_capture() { return cuda_on_host::end_capture(); }
DENDNORM_ON_HOST void dendnorm_on_host_replay(const void* graph, int device) {
  cuda_on_host::replay(static_cast<const cuda_on_host::Graph*>(graph), cuda_on_host::current_stream(device));
}
DENDNORM_ON_HOST void dendnorm_on_host_destroy(void* graph) {
  cuda_on_host::destroy(static_cast<cuda_on_host::Graph*>(graph));
}
DENDNORM_ON_HOST int dendnorm_on_host_capturing() { return cuda_on_host::capturing(); }
DENDNORM_ON_HOST void dendnorm_on_host_forbid_waiting(int forbidden) { cuda_on_host::forbid_waiting(forbidden != 0); }
DENDNORM_ON_HOST void dendnorm_on_host_shape(int multiprocessors, int shared_bytes, int l2_bytes) {
  cuda_on_host::Device& device = cuda_on_host::device();
  device.multiprocessors = multiprocessors;
  device.shared_per_block_optin = shared_bytes;
  device.l2_bytes = l2_bytes;
}
