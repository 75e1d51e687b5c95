// Random numbers without state: each is a function of (seed, step, layer, purpose, index), so that every device, every
// rank and every resumed run draws the same ones, in any order.
//
// The bits are the same everywhere because only operations that IEEE 754 rounds in one way take part: sums, products,
// quotients, square roots and fma. Wherever a product is added to something the fma is written out, which leaves a
// compiler nothing to contract; logarithm, sine and cosine are series of these, not the library's.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/platform.h"

namespace dendnorm {

// Philox4x32-10: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
struct Block {
  std::uint32_t word[4];
};

DENDNORM_HD inline Block philox(Block counter, std::uint32_t key0, std::uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t even = std::uint64_t{0xD2511F53} * counter.word[0];
    const std::uint64_t odd = std::uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {{static_cast<std::uint32_t>(odd >> 32) ^ counter.word[1] ^ key0, static_cast<std::uint32_t>(odd),
                static_cast<std::uint32_t>(even >> 32) ^ counter.word[3] ^ key1, static_cast<std::uint32_t>(even)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// What a stream is used for: streams of different purposes have nothing in common.
enum class Purpose : std::uint32_t { kPosition = 1, kValue = 2 };

struct Stream {
  Block base;
};

// All 128 bits of the hash go on: two into the key, two into the counter.
DENDNORM_HD inline Stream stream_of(std::uint64_t seed, std::uint64_t step, std::uint32_t layer, Purpose purpose) {
  const Block counter{{static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(step >> 32), layer,
                       static_cast<std::uint32_t>(purpose)}};
  return {philox(counter, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32))};
}

struct Bits {
  std::uint64_t first, second;
};

DENDNORM_HD inline Bits bits_at(const Stream& stream, std::uint64_t index) {
  const Block counter{{static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), stream.base.word[2],
                       stream.base.word[3]}};
  const Block drawn = philox(counter, stream.base.word[0], stream.base.word[1]);
  return {std::uint64_t{drawn.word[0]} << 32 | drawn.word[1], std::uint64_t{drawn.word[2]} << 32 | drawn.word[3]};
}

// log(odd / 2^53) for an odd number below 2^53.
DENDNORM_HD inline double log_of_fraction(std::uint64_t odd) {
  const double x = static_cast<double>(odd) * 0x1p-53;
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  bits = (bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
  double mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  if (mantissa > 1.4142135623730951) {
    mantissa *= 0.5;
    ++exponent;
  }
  // log m = 2 atanh t, t = (m - 1) / (m + 1); |t| < 0.172, so t^22 / 23 is below a rounding error.
  const double t = (mantissa - 1) / (mantissa + 1), square = t * t;
  double series = 1.0 / 21;
  for (int n = 19; n >= 1; n -= 2) series = std::fma(series, square, 1.0 / n);
  return std::fma(static_cast<double>(exponent), 0.69314718055994531, 2 * t * series);
}

struct Direction {
  double cosine, sine;
};

// A uniformly random direction: two bits choose the quadrant, 52 the angle in it, between -pi/4 and pi/4.
DENDNORM_HD inline Direction direction_of(std::uint64_t bits) {
  const auto odd = static_cast<std::int64_t>((bits & 0xFFFFFFFFFFFFFull) << 1 | 1);
  const double angle = static_cast<double>(odd - (std::int64_t{1} << 52)) * 0x1p-53 * 1.5707963267948966;
  const double square = angle * angle;
  // 1 - x^2/2! + ..., up to x^18, and x - x^3/3! + ..., up to x^17: exact to rounding error on this interval.
  double cosine = 1, sine = 1;
  for (int n = 18; n >= 2; n -= 2) cosine = std::fma(cosine * square, -1.0 / (n * (n - 1)), 1.0);
  for (int n = 17; n >= 3; n -= 2) sine = std::fma(sine * square, -1.0 / (n * (n - 1)), 1.0);
  sine *= angle;
  switch (bits >> 62) {
    case 0: return {cosine, sine};
    case 1: return {-sine, cosine};
    case 2: return {-cosine, -sine};
    default: return {sine, -cosine};
  }
}

struct NormalPair {
  double first, second;
};

// The entries 2 * index and 2 * index + 1 of the stream's N(0, 1) values, after Box and Muller. |z| < 8.6.
DENDNORM_HD inline NormalPair normal_pair(const Stream& stream, std::uint64_t index) {
  const Bits bits = bits_at(stream, index);
  const double radius = std::sqrt(-2 * log_of_fraction((bits.first >> 12) << 1 | 1));
  const Direction direction = direction_of(bits.second);
  return {radius * direction.cosine, radius * direction.sine};
}

// A keyed bijection of [0, size), 1 <= size <= 2^62: a Feistel network on pairs (left, right) in [0, a) x [0, b), with
// a b just above size (J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002); a value that falls
// outside goes through again, which ends because a bijection's cycles do.
class Bijection {
 public:
  DENDNORM_HD Bijection(std::uint64_t size, const Stream& stream) : size_(size), key_(bits_at(stream, 0).first) {
    left_ = static_cast<std::uint64_t>(std::sqrt(static_cast<double>(size)));
    while (left_ * left_ < size) ++left_;
    right_ = (size + left_ - 1) / left_;
    // Two values stay told apart with a probability that falls by about 1 / right_ in two rounds: small sides need
    // more.
    int width = 1;
    while (width < 32 && right_ >> (width + 1) != 0) ++width;
    rounds_ = 8 + 48 / width;
  }

  DENDNORM_HD std::uint64_t operator()(std::uint64_t value) const {
    do {
      once<1>(&value);
    } while (value >= size_);
    return value;
  }

  // Of numbers from `first` on, to images[0], ..., several at a time: the steps for one wait for each other.
  void images_of(std::uint64_t first, std::uint64_t* images, std::int64_t count) const {
    constexpr int kTogether = 8;
    std::int64_t i = 0;
    for (; i + kTogether <= count; i += kTogether) {
      for (int j = 0; j < kTogether; ++j) images[i + j] = first + i + j;
      once<kTogether>(images + i);
      for (int j = 0; j < kTogether; ++j) {
        if (images[i + j] >= size_) images[i + j] = (*this)(images[i + j]);
      }
    }
    for (; i < count; ++i) images[i] = (*this)(first + i);
  }

 private:
  template <int kTogether>
  DENDNORM_HD void once(std::uint64_t* values) const {
    std::uint64_t left[kTogether], right[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      left[i] = values[i] % left_;
      right[i] = values[i] / left_;
    }
    for (std::uint64_t round = 0; round < static_cast<std::uint64_t>(rounds_); round += 2) {
      for (int i = 0; i < kTogether; ++i) {
        left[i] += below(left_, round << 32 | right[i]);
        if (left[i] >= left_) left[i] -= left_;
      }
      for (int i = 0; i < kTogether; ++i) {
        right[i] += below(right_, (round + 1) << 32 | left[i]);
        if (right[i] >= right_) right[i] -= right_;
      }
    }
    for (int i = 0; i < kTogether; ++i) values[i] = left[i] + left_ * right[i];
  }

  // A number in [0, limit), limit <= 2^31 + 1, from the finaliser of SplitMix64.
  DENDNORM_HD std::uint64_t below(std::uint64_t limit, std::uint64_t word) const {
    word += key_;
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9ull;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EBull;
    return ((word ^ (word >> 31)) >> 32) * limit >> 32;
  }

  std::uint64_t size_, key_, left_ = 1, right_ = 1;
  int rounds_ = 0;
};

}  // namespace dendnorm
