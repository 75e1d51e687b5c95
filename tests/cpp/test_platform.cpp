// What differs between processors and systems (core/platform.h).
#include <gtest/gtest.h>

#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "core/platform.h"

namespace dendnorm::platform {
namespace {

// Not foretold by the compiler.
float third() {
  volatile float one = 1, three = 3;
  return one / three;
}

TEST(FloatMode, GoesFromOneThreadToAnother) {
  const std::uint64_t usual = float_mode();
  const float nearest = third();
  ASSERT_EQ(std::fesetround(FE_DOWNWARD), 0);
  const std::uint64_t downward = float_mode();
  const float lower = third();
  set_float_mode(usual);
  const float again = third();
  std::fesetround(FE_TONEAREST);  // of the x87 unit, too
  if (downward == usual) GTEST_SKIP() << "not known for this processor";
  EXPECT_LT(lower, nearest);
  EXPECT_EQ(again, nearest);

  float there = 0;
  std::thread([&] {
    set_float_mode(downward);
    there = third();
  }).join();
  EXPECT_EQ(there, lower);
  EXPECT_EQ(third(), nearest);
}

TEST(FloatMode, SaysWhetherSubnormalNumbersAreZero) {
#if defined(__x86_64__)
  constexpr std::uint64_t kFlush = 0x8000;
#elif defined(__aarch64__)
  constexpr std::uint64_t kFlush = std::uint64_t{1} << 24;
#else
  GTEST_SKIP() << "not known for this processor";
  constexpr std::uint64_t kFlush = 0;
#endif
  const std::uint64_t usual = float_mode();
  volatile float smallest = std::numeric_limits<float>::min(), half = 0.5F;
  EXPECT_GT(smallest * half, 0);
  set_float_mode(usual | kFlush);
  const float flushed = smallest * half;
  EXPECT_NE(float_mode() & kFlush, 0u);
  set_float_mode(usual);
  EXPECT_EQ(flushed, 0);
}

TEST(LargePages, AreAskedForWithinTheBytes) {
  // Neighbours keep what they hold, at any size and place.
  std::vector<unsigned char> memory(std::size_t{9} << 20, 7);
  for (const std::size_t begin : {std::size_t{0}, std::size_t{1}, std::size_t{3} << 20}) {
    prefer_large_pages(memory.data() + begin, memory.size() - begin);
    prefer_large_pages(memory.data() + begin, 1);
    prefer_large_pages(memory.data() + begin, 0);
  }
  for (const unsigned char byte : memory) ASSERT_EQ(byte, 7);
}

}  // namespace
}  // namespace dendnorm::platform
