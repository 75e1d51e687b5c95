// Streams, events and memory of the devices that the host stands in for.
//
// Work that is given to a stream waits there. It is done when the host waits for the stream, when an op of PyTorch that
// the host does in the device's place comes after it in the same stream, or when another stream has to wait for it. So
// what is given to a wrong stream is too late for whoever reads it. Memory is given back in the order of the stream
// that it was taken for, as PyTorch's allocator orders it, and is full of what is no number until somebody writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda_on_host.h"

namespace cuda_on_host {

constexpr int kDevices = 2, kStreams = 8;

struct StreamName {
  int device = 0, number = 0;  // 0 is the default stream
};

StreamName current_stream(int device);
void set_current_stream(StreamName stream);
// As CUDA names it: the default stream is null, and is that of whatever device is current.
cudaStream_t handle_of(StreamName stream);

// How much had been given to a stream, and when it got there, in milliseconds.
struct Event {
  StreamName stream;
  std::uint64_t given = 0;
  std::shared_ptr<double> at;
};
Event record(StreamName stream);
// The stream goes on only after the event.
void wait_for(StreamName stream, Event event);
bool is_done(const Event& event);
bool is_done(StreamName stream);
// The host waits.
void finish(Event event);
void finish(StreamName stream);
void finish_device(int device);

// For the current stream of `device`; what `release` is given is no longer used by what comes after in that stream.
struct Block;
Block* allocate(std::size_t bytes, int device);
void* memory_of(const Block* block);
void release(Block* block);
// So far, on all devices.
std::uint64_t allocations();

// What is given to a stream between begin and end is not done, but kept, to be given to a stream again and again. So is
// memory that was given back in between.
struct Graph;
void begin_capture(StreamName stream);
Graph* end_capture();
bool capturing();
void replay(const Graph* graph, StreamName stream);
void destroy(Graph* graph);

// torch.cuda.set_sync_debug_mode("error"): what makes the host wait for the device without having asked to is refused.
// While something is captured it always is.
void forbid_waiting(bool forbidden);
void about_to_wait(const char* what);

}  // namespace cuda_on_host
