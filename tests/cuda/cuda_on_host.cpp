// The threads of a block, and where they meet. Compiled without ThreadSanitizer, which is told what orders what.
#include "cuda_on_host.h"

#include <array>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "fiber.h"

namespace cuda_on_host {
namespace {

constexpr int kLanes = 32, kMaxThreads = 1024;

enum class State { kReady, kBarrier, kExchange, kDone };

struct Thread {
  uint3 index{};
  int number = 0, lane = 0;
  State state = State::kDone;
  std::source_location where;
  Exchange what{};
  unsigned mask = 0;
  std::uint64_t value = 0, result = 0;
  int from = -1;
  char arrive[2] = {}, leave[2] = {};  // what ThreadSanitizer knows a __syncwarp by; two, for a slow lane may still
  int turn = 0;                        // have to leave the one before
  void* released = nullptr;
  int fiber = 0;
  std::vector<Copy> copies;
};

struct Fault {
  std::string what;
  std::source_location where;
};

// Lanes that wait for the rest of their mask.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  int first = 0;
};

// Everything of the launch that is running. One host thread launches at a time.
struct Running {
  const void* kernel = nullptr;
  dim3 grid, block;
  uint3 block_index{};
  const Work* body = nullptr;
  std::byte* shared = nullptr;
  std::vector<Thread> threads;
  std::array<Meeting, kMaxThreads / kLanes> meetings;
  std::vector<int> ready;  // threads that may go on
  int count = 0, done = 0;
  int at_barrier = 0, barrier_turn = 0;
  char barrier_object[2] = {}, start = 0, finish = 0;
  bool failed = false;
  Fault fault;
};

Running run;
Thread* current = nullptr;
std::unique_ptr<Fiber> host;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Thread*> job;  // of each fiber
std::uint64_t order = 1, drawn = 1, launched = 0, asked = 0;
cudaError_t last_error = cudaSuccess;
Queue queue = nullptr;
std::map<std::pair<const void*, int>, int> shared_limit;

std::uint64_t draw() {
  drawn ^= drawn << 13;
  drawn ^= drawn >> 7;
  drawn ^= drawn << 17;
  return drawn * 0x2545F4914F6CDD1Dull >> 33;
}

std::string place(const std::source_location& where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line()) + " in " + where.function_name();
}

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string triple(const auto& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

const char* name_of(Exchange what) {
  switch (what) {
    case Exchange::kSync: return "__syncwarp";
    case Exchange::kShuffle: return "a shuffle";
    default: return "a ballot";
  }
}

std::string doing(const Thread& thread) {
  switch (thread.state) {
    case State::kDone: return "has returned";
    case State::kBarrier: return "waits at __syncthreads, " + place(thread.where);
    case State::kExchange: return std::string("waits at ") + name_of(thread.what) + ", " + place(thread.where);
    default: return "has not arrived";
  }
}

// DENDNORM_FORGET=FILE:LINE makes the barrier there do nothing: the checkers are checked with kernels that lack it.
bool forgotten(const std::source_location& where) {
  static const char* const wanted = std::getenv("DENDNORM_FORGET");
  if (wanted == nullptr) return false;
  const std::string here = where.file_name();
  return here.substr(here.rfind('/') + 1) + ":" + std::to_string(where.line()) == wanted;
}

// DENDNORM_SHARED_LESS=BYTES gives every block so much less shared memory than the launch asked for.
std::size_t shared_less() {
  static const char* const less = std::getenv("DENDNORM_SHARED_LESS");
  return less == nullptr ? 0 : std::strtoull(less, nullptr, 10);
}

// The next thread that may go on, or the host, which finds the block finished or stuck.
void yield() {
  Fiber& from = *fibers[current->fiber];
  if (run.ready.empty() || run.failed) {
    Fiber::switch_to(from, *host);
    return;
  }
  const std::size_t at = draw() % run.ready.size();
  std::swap(run.ready[at], run.ready.back());
  Thread* next = &run.threads[run.ready.back()];
  run.ready.pop_back();
  if (next == current) return;
  current = next;
  Fiber::switch_to(from, *fibers[next->fiber]);
}

void wake(Thread& thread) {
  thread.state = State::kReady;
  if (&thread != current) run.ready.push_back(thread.number);
}

// Waits until somebody makes this thread ready again.
void wait(State state) {
  Thread* self = current;
  self->state = state;
  release(&run.finish);  // should it never go on
  yield();
  current = self;
}

// Where somebody waits for this thread, which has returned, nobody waits in vain for long.
void check_nobody_waits(const Thread& self) {
  if (run.at_barrier > 0) refuse("it returned, and others wait for it at __syncthreads", self.where);
  const int first = self.number - self.lane;
  for (int lane = 0; lane < kLanes && first + lane < run.count; ++lane) {
    const Thread& other = run.threads[first + lane];
    if (other.state == State::kExchange && (other.mask >> self.lane & 1) != 0) {
      refuse("it returned, and lane " + std::to_string(lane) + " " + doing(other) + " for it", other.where);
    }
  }
}

void fiber_body(void* argument) {
  Thread*& mine = job[reinterpret_cast<std::uintptr_t>(argument)];
  for (;;) {
    acquire(&run.start);
    try {
      (*run.body)();
      if (!mine->copies.empty()) refuse("it returned, and never waited for its copies", mine->where);
      mine->state = State::kDone;
      ++run.done;
      check_nobody_waits(*mine);
    } catch (Fault& fault) {
      run.failed = true;
      run.fault = std::move(fault);
    }
    current = mine;
    release(&run.finish);
    yield();
  }
}

Fiber& fiber(int number) {
  while (static_cast<int>(fibers.size()) <= number) {
    job.reserve(kMaxThreads);
    job.push_back(nullptr);
    fibers.push_back(std::make_unique<Fiber>(fiber_body, reinterpret_cast<void*>(fibers.size())));
  }
  return *fibers[number];
}

void shuffle_numbers(std::vector<int>& numbers) {
  for (std::size_t k = numbers.size(); k > 1; --k) std::swap(numbers[k - 1], numbers[draw() % k]);
}

void run_block(std::vector<int>& fiber_of) {
  shuffle_numbers(fiber_of);
  run.ready.clear();
  run.meetings.fill({});
  run.done = run.at_barrier = 0;
  for (int number = 0; number < run.count; ++number) {
    Thread& thread = run.threads[number];
    thread.number = number;
    thread.lane = number % kLanes;
    const unsigned n = static_cast<unsigned>(number);
    thread.index = {n % run.block.x, n / run.block.x % run.block.y, n / run.block.x / run.block.y};
    thread.state = State::kReady;
    thread.where = {};
    thread.fiber = fiber_of[number];
    thread.copies.clear();
    fiber(thread.fiber);
    job[thread.fiber] = &thread;
    run.ready.push_back(number);
  }
  release(&run.start);
  // Into the first thread; what comes back is a finished block, or one in which nobody can go on.
  const std::size_t at = draw() % run.ready.size();
  std::swap(run.ready[at], run.ready.back());
  current = &run.threads[run.ready.back()];
  run.ready.pop_back();
  Fiber::switch_to(*host, *fibers[current->fiber]);
  if (run.failed || run.done == run.count) return;
  std::string stuck = "nobody can go on:";
  int named = 0;
  for (const Thread& thread : run.threads) {
    if (thread.state == State::kDone || thread.number >= run.count || named++ == 4) continue;
    stuck += "\n  thread " + triple(thread.index) + " " + doing(thread);
  }
  run.failed = true;
  run.fault = {stuck, {}};
}

std::string report() {
  char kernel[32];
  std::snprintf(kernel, sizeof kernel, "%p", run.kernel);
  std::string text = "kernel " + std::string(kernel) + ", grid " + triple(run.grid) + " of blocks " + triple(run.block);
  text += ": block " + triple(run.block_index) + ", thread " + triple(current->index) + ": " + run.fault.what;
  if (run.fault.where.line() != 0) text += "\n  at " + place(run.fault.where);
  return text;
}

}  // namespace

Device& device() {
  static Device found;
  return found;
}

void set_order(std::uint64_t seed) { order = seed * 0x9E3779B97F4A7C15ull | 1; }
std::uint64_t launches() { return launched; }
std::uint64_t questions() { return asked; }

void set_queue(Queue wanted) { queue = wanted; }
cudaError_t enqueue(cudaStream_t stream, Work work) {
  if (queue != nullptr) return queue(stream, std::move(work));
  work();
  return cudaSuccess;
}
int& current_device() {
  static thread_local int index = 0;
  return index;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  ++asked;
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > device().shared_per_block_optin) return last_error = cudaErrorInvalidValue;
  shared_limit[{kernel, current_device()}] = value;
  return cudaSuccess;
}

void run_kernel(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, const Work& body);

cudaError_t launch(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Work body) {
  const std::uint64_t count = std::uint64_t{block.x} * block.y * block.z;
  const auto limit = shared_limit.find({kernel, current_device()});
  const int allowed = std::max(device().shared_per_block, limit == shared_limit.end() ? 0 : limit->second);
  // What a device refuses; an empty grid is among it.
  if (count < 1 || count > kMaxThreads || block.z > 64 || grid.x < 1 || grid.y < 1 || grid.z < 1 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  if (shared_bytes > static_cast<std::size_t>(allowed)) return last_error = cudaErrorInvalidValue;
  ++launched;
  return enqueue(stream, [=, body = std::move(body)] { run_kernel(kernel, grid, block, shared_bytes, body); });
}

void run_kernel(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, const Work& body) {
  host = std::make_unique<Fiber>();  // of the thread that waits for the stream: another one each time
  drawn = order;
  for (int k = 0; k < 8; ++k) draw();
  run.kernel = kernel;
  run.grid = grid;
  run.block = block;
  run.body = &body;
  run.count = static_cast<int>(block.x * block.y * block.z);
  run.failed = false;
  run.threads.resize(kMaxThreads);
  run.ready.reserve(kMaxThreads);

  std::vector<int> fiber_of(run.count);
  for (int k = 0; k < run.count; ++k) fiber_of[k] = k;
  std::vector<int> blocks(std::size_t{grid.x} * grid.y * grid.z);
  for (std::size_t k = 0; k < blocks.size(); ++k) blocks[k] = static_cast<int>(k);
  shuffle_numbers(blocks);
  // Kept to the end: nothing orders what two blocks do, and giving memory back would.
  std::vector<std::unique_ptr<std::byte, decltype(&std::free)>> kept;
  for (const int number : blocks) {
    const unsigned n = static_cast<unsigned>(number);
    run.block_index = {n % grid.x, n / grid.x % grid.y, n / grid.x / grid.y};
    // As many bytes as asked for and no more, full of what is no number.
    void* memory = nullptr;
    if (shared_bytes > 0) {
      const std::size_t given = shared_bytes - std::min(shared_less(), shared_bytes);
      if (posix_memalign(&memory, 128, given) != 0) throw std::bad_alloc();
      std::memset(memory, 0xff, given);
    }
    run.shared = static_cast<std::byte*>(memory);
#if defined(DENDNORM_THREAD_SANITIZER)
    kept.emplace_back(run.shared, &std::free);
#else
    kept.clear();
    kept.emplace_back(run.shared, &std::free);
#endif
    run_block(fiber_of);
    if (run.failed) {
      acquire(&run.finish);
      const std::string text = report();
      // Threads that are in the middle of a kernel are of no more use.
      fibers.clear();
      job.clear();
      throw Error(text);
    }
  }
  acquire(&run.finish);
}

uint3 thread_index() { return current->index; }
uint3 block_index() { return run.block_index; }
dim3 block_size() { return run.block; }
dim3 grid_size() { return run.grid; }
std::byte* shared() { return run.shared; }
int lane() { return current->lane; }
void copy_later(const Copy& copy) { current->copies.push_back(copy); }
bool next_copy(Copy* copy) {
  if (current->copies.empty()) return false;
  *copy = current->copies.back();
  current->copies.pop_back();
  return true;
}

void refuse(const std::string& what, std::source_location where) { throw Fault{what, where}; }

void barrier(std::source_location where) {
  Thread* self = current;
  self->where = where;
  if (forgotten(where)) return;
  if (run.done > 0) {
    const auto returned = [](const Thread& thread) { return thread.state == State::kDone; };
    const Thread& other = *std::find_if(run.threads.begin(), run.threads.end(), returned);
    refuse("waits at __syncthreads for thread " + triple(other.index) + ", which has returned", where);
  }
  for (int number = 0; number < run.count && run.at_barrier > 0; ++number) {
    const Thread& other = run.threads[number];
    if (other.state != State::kBarrier) continue;
    if (!same_place(other.where, where)) {
      refuse("thread " + triple(other.index) + " " + doing(other) + ", which is another barrier", where);
    }
    break;
  }
  char* object = &run.barrier_object[run.barrier_turn];
  release(object);
  if (++run.at_barrier < run.count) {
    wait(State::kBarrier);
  } else {
    run.at_barrier = 0;
    run.barrier_turn ^= 1;
    for (int number = 0; number < run.count; ++number) {
      if (number != self->number) wake(run.threads[number]);
    }
  }
  acquire(object);
}

namespace {

// Whether everybody is here; refuses what can never be complete.
bool arrive(const Thread& self, const Thread* warp) {
  Meeting& meeting = run.meetings[self.number / kLanes];
  const unsigned own = 1u << self.lane;
  // The first one looked at all lanes; who comes after it has only to want the same.
  if (meeting.arrived != 0 && meeting.mask == self.mask && (meeting.arrived & own) == 0) {
    const Thread& first = warp[meeting.first];
    if (first.what == self.what && same_place(first.where, self.where)) {
      meeting.arrived |= own;
      if (meeting.arrived != meeting.mask) return false;
      meeting.arrived = 0;
      return true;
    }
  }
  unsigned here = own;
  for (unsigned rest = self.mask & ~own; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    const std::string name = "lane " + std::to_string(lane);
    const Thread& other = warp[lane];
    if (self.number - self.lane + lane >= run.count) {
      refuse("its mask names " + name + ", which the block does not have", self.where);
    }
    // Not here yet, or busy with lanes of another mask first.
    if (other.state == State::kReady || (other.state == State::kExchange && (other.mask & own) == 0)) continue;
    if (other.state != State::kExchange || other.mask != self.mask || other.what != self.what ||
        !same_place(other.where, self.where)) {
      refuse(std::string(name_of(self.what)) + " names " + name + " in its mask, which " + doing(other), self.where);
    }
    here |= 1u << lane;
  }
  if (here == self.mask) return true;
  if (meeting.arrived == 0) meeting = {self.mask, here, self.lane};
  return false;
}

void finish_exchange(Thread* warp, unsigned mask, Exchange what) {
  std::uint64_t votes = 0;
  for (int lane = 0; lane < kLanes && what == Exchange::kBallot; ++lane) {
    if ((mask >> lane & 1) != 0) votes |= warp[lane].value << lane;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    warp[lane].result = what == Exchange::kShuffle ? warp[warp[lane].from].value : votes;
  }
}

}  // namespace

std::uint64_t exchange(Exchange what, unsigned mask, std::uint64_t value, int from, std::source_location where) {
  Thread* self = current;
  Thread* warp = &run.threads[self->number / kLanes * kLanes];
  self->where = where;
  if (what == Exchange::kSync && forgotten(where)) return 0;
  if ((mask >> self->lane & 1) == 0) refuse("its own lane is not in the mask that it passes", where);
  if (what == Exchange::kShuffle && (mask >> from & 1) == 0) {
    refuse("reads lane " + std::to_string(from) + ", which is not in the mask of the shuffle", where);
  }
  self->what = what;
  self->mask = mask;
  self->value = value;
  self->from = from;
  const bool complete = arrive(*self, warp);
  const bool orders = what == Exchange::kSync;  // a shuffle says nothing about memory
  self->turn ^= 1;
  if (orders) release(&self->arrive[self->turn]);
  if (!complete) {
    wait(State::kExchange);
    if (orders) acquire(self->released);
    return self->result;
  }
  finish_exchange(warp, mask, what);
  void* all = &self->leave[self->turn];
  for (int lane = 0; lane < kLanes && orders; ++lane) {
    if ((mask >> lane & 1) != 0) acquire(&warp[lane].arrive[warp[lane].turn]);
  }
  if (orders) release(all);
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((mask >> lane & 1) == 0 || lane == self->lane) continue;
    warp[lane].released = all;
    wake(warp[lane]);
  }
  return self->result;
}

}  // namespace cuda_on_host

// ---- The runtime ----

using cuda_on_host::last_error;

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    default: return "invalid configuration argument";
  }
}
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    default: return "cudaErrorInvalidConfiguration";
  }
}
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetDevice(int* device) {
  *device = cuda_on_host::current_device();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  ++cuda_on_host::asked;
  const cuda_on_host::Device& device = cuda_on_host::device();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = device.multiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = device.shared_per_block_optin; break;
    case cudaDevAttrL2CacheSize: *value = device.l2_bytes; break;
  }
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int byte, std::size_t bytes, cudaStream_t stream) {
  return cuda_on_host::enqueue(stream, [=] { std::memset(to, byte, bytes); });
}
