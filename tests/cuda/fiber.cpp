#include "fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(DENDNORM_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_on_host {
namespace {

// The two sides of the switch that is under way: registers do not survive it.
Fiber *leaving = nullptr, *arriving = nullptr;

// The builtins save no signal mask, and no sanitizer takes them for a return. They need a function each.
[[noreturn]] __attribute__((noinline)) void jump(void** to) { __builtin_longjmp(to, 1); }

}  // namespace

Fiber::Fiber() : started_(true) {
#if defined(DENDNORM_THREAD_SANITIZER)
  thread_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(void (*body)(void*), void* argument) : body_(body), argument_(argument), stack_bytes_(kStackBytes) {
  // The lowest page stays out of reach: a stack that grows too far stops there.
  constexpr std::size_t kPage = 4096;
  void* memory = mmap(nullptr, kStackBytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE) != 0) throw std::bad_alloc();
  stack_ = static_cast<std::byte*>(memory) + kPage;
#if defined(DENDNORM_THREAD_SANITIZER)
  thread_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (stack_ == nullptr || body_ == nullptr) return;
#if defined(DENDNORM_THREAD_SANITIZER)
  __tsan_destroy_fiber(thread_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack_, stack_bytes_);
#endif
  munmap(static_cast<std::byte*>(stack_) - 4096, stack_bytes_ + 4096);
}

void Fiber::arrived([[maybe_unused]] Fiber* from) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &bytes);
  // The first stack that is left is the thread's own, whose place only the sanitizer knows.
  if (from != nullptr && from->stack_ == nullptr) {
    from->stack_ = const_cast<void*>(bottom);
    from->stack_bytes_ = bytes;
  }
#endif
}

void Fiber::start() {
  Fiber* fiber = arriving;
  fiber->arrived(leaving);
  fiber->body_(fiber->argument_);
  __builtin_trap();
}

__attribute__((noinline)) void Fiber::switch_to(Fiber& from, Fiber& to) {
  leaving = &from;
  arriving = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.stack_bytes_);
#endif
#if defined(DENDNORM_THREAD_SANITIZER)
  __tsan_switch_to_fiber(to.thread_, __tsan_switch_to_fiber_no_sync);
#endif
  if (__builtin_setjmp(from.jump_) == 0) {
    if (to.started_) jump(to.jump_);
    to.started_ = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = to.stack_;
    context.uc_stack.ss_size = to.stack_bytes_;
    context.uc_link = nullptr;
    makecontext(&context, start, 0);
    setcontext(&context);
  }
  arriving->arrived(leaving);
}

void release([[maybe_unused]] void* object) {
#if defined(DENDNORM_THREAD_SANITIZER)
  __tsan_release(object);
#endif
}

void acquire([[maybe_unused]] void* object) {
#if defined(DENDNORM_THREAD_SANITIZER)
  __tsan_acquire(object);
#endif
}

}  // namespace cuda_on_host
