// Stacks to switch between, in one host thread. AddressSanitizer and ThreadSanitizer are told of every switch;
// ThreadSanitizer takes each fiber for a thread of its own and a switch for nothing, so it sees unordered accesses.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_host {

class Fiber {
 public:
  static constexpr std::size_t kStackBytes = std::size_t{256} << 10;

  // `body(argument)` runs at the first switch to it and never returns.
  Fiber(void (*body)(void*), void* argument);
  // The fiber of the thread that is running.
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves `from`, which is running, for `to`; returns when somebody switches back.
  static void switch_to(Fiber& from, Fiber& to);

 private:
  static void start();
  void arrived(Fiber* from);

  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool started_ = false;
  void* jump_[5] = {};
  void* stack_ = nullptr;  // lowest byte
  std::size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
  void* thread_ = nullptr;  // ThreadSanitizer's
};

// What a rendezvous means to ThreadSanitizer; nothing without it.
void release(void* object);
void acquire(void* object);

}  // namespace cuda_on_host
