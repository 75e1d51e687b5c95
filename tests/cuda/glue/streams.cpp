#include "streams.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

struct CUstream_st {
  int device = 0;
  std::deque<cuda_on_host::Work> waiting;
  std::uint64_t given = 0, done = 0;
};

namespace cuda_on_host {

struct Block {
  void* memory = nullptr;
  CUstream_st* stream = nullptr;
};

struct Graph {
  std::vector<Work> work;
  std::vector<void*> memory;
};

namespace {

std::recursive_mutex mutex;
std::array<std::array<CUstream_st, kStreams>, kDevices> streams;
thread_local std::array<int, kDevices> current{};
std::uint64_t allocated = 0;
std::unique_ptr<Graph> captured;  // while something is captured
CUstream_st* captured_stream = nullptr;
std::atomic<bool> waiting_forbidden = false;

CUstream_st& stream_of(StreamName name) {
  CUstream_st& stream = streams.at(name.device).at(name.number);
  stream.device = name.device;
  return stream;
}

void give(CUstream_st& stream, Work work) {
  const std::lock_guard lock(mutex);
  if (captured && &stream == captured_stream) {
    captured->work.push_back(std::move(work));
    return;
  }
  stream.waiting.push_back(std::move(work));
  ++stream.given;
}

void work_off(CUstream_st& stream, std::uint64_t until) {
  const std::lock_guard lock(mutex);
  while (stream.done < until && !stream.waiting.empty()) {
    const Work work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    ++stream.done;
    work();
  }
}

// A launch: to the stream of a device that is not current it is refused.
cudaError_t take(cudaStream_t stream, Work work) {
  if (stream == nullptr) stream = &stream_of({current_device(), 0});
  if (stream->device != current_device()) return cudaErrorInvalidResourceHandle;
  give(*stream, std::move(work));
  return cudaSuccess;
}

[[maybe_unused]] const bool queued = (set_queue(take), true);

}  // namespace

StreamName current_stream(int device) { return {device, current.at(device)}; }
void set_current_stream(StreamName stream) { current.at(stream.device) = stream.number; }
cudaStream_t handle_of(StreamName stream) { return stream.number == 0 ? nullptr : &stream_of(stream); }

Event record(StreamName stream) {
  auto at = std::make_shared<double>(0);
  give(stream_of(stream), [at] {
    const std::chrono::duration<double, std::milli> now = std::chrono::steady_clock::now().time_since_epoch();
    *at = now.count();
  });
  const std::lock_guard lock(mutex);
  return {stream, stream_of(stream).given, at};
}

void wait_for(StreamName stream, Event event) {
  give(stream_of(stream), [event] { finish(event); });
}

bool is_done(StreamName stream) {
  const std::lock_guard lock(mutex);
  return stream_of(stream).waiting.empty();
}
bool is_done(const Event& event) {
  const std::lock_guard lock(mutex);
  return stream_of(event.stream).done >= event.given;
}

void finish(Event event) { work_off(stream_of(event.stream), event.given); }
void finish(StreamName stream) { work_off(stream_of(stream), ~std::uint64_t{0}); }
void finish_device(int device) {
  for (int number = 0; number < kStreams; ++number) finish(StreamName{device, number});
}

Block* allocate(std::size_t bytes, int device) {
  auto* block = new Block;
  // As aligned as CUDA's, and not a byte more than asked for: AddressSanitizer knows the end.
  if (posix_memalign(&block->memory, 512, bytes) != 0) throw std::bad_alloc();
  block->stream = &stream_of(current_stream(device));
  std::memset(block->memory, 0xff, bytes);
  const std::lock_guard lock(mutex);
  ++allocated;
  return block;
}

void* memory_of(const Block* block) { return block->memory; }

void release(Block* block) {
  const std::lock_guard lock(mutex);
  if (captured && block->stream == captured_stream) {
    captured->memory.push_back(block->memory);
  } else {
    give(*block->stream, [memory = block->memory] { std::free(memory); });
  }
  delete block;
}

std::uint64_t allocations() {
  const std::lock_guard lock(mutex);
  return allocated;
}

void begin_capture(StreamName stream) {
  const std::lock_guard lock(mutex);
  captured = std::make_unique<Graph>();
  captured_stream = &stream_of(stream);
}
Graph* end_capture() {
  const std::lock_guard lock(mutex);
  return captured.release();
}
bool capturing() {
  const std::lock_guard lock(mutex);
  return captured != nullptr;
}
void replay(const Graph* graph, StreamName stream) {
  for (const Work& work : graph->work) give(stream_of(stream), work);
}
void destroy(Graph* graph) {
  for (int device = 0; device < kDevices; ++device) finish_device(device);
  for (void* memory : graph->memory) std::free(memory);
  delete graph;
}

void forbid_waiting(bool forbidden) { waiting_forbidden = forbidden; }
void about_to_wait(const char* what) {
  if (capturing()) throw Error(std::string("operation not permitted when stream is capturing: ") + what);
  if (waiting_forbidden) throw Error(std::string("called a synchronizing CUDA operation: ") + what);
}

}  // namespace cuda_on_host
