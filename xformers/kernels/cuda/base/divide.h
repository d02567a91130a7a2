// Division of positions by a size known on the host, without the long 64-bit division of the GPU.
#pragma once

#include <cstdint>

namespace xformers::cuda {

class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t size) : size_(size), inverse_(1.0 / static_cast<double>(size)) {}

  // Of 0 <= a < 2^52: the product is at most one off.
  constexpr int64_t quotient(int64_t a) const {
    int64_t q = static_cast<int64_t>(static_cast<double>(a) * inverse_);
    const int64_t rest = a - q * size_;
    if (rest < 0) --q;
    if (rest >= size_) ++q;
    return q;
  }

 private:
  int64_t size_ = 1;
  double inverse_ = 1;
};

// The same for 32 bits, in a handful of instructions.
class ShortDivisor {
 public:
  struct Result {
    uint32_t quotient, rest;
  };

  ShortDivisor() = default;
  explicit ShortDivisor(uint32_t size)
      : size_(size), inverse_(size == 1 ? ~0u : static_cast<uint32_t>((uint64_t{1} << 32) / size)) {}

  int64_t size() const { return size_; }

  // 2^32 / size is rounded down, so the product is at most one too small.
  constexpr Result divide(uint32_t a) const {
    uint32_t quotient = static_cast<uint32_t>((uint64_t{a} * inverse_) >> 32), rest = a - quotient * size_;
    if (rest >= size_) ++quotient, rest -= size_;
    return {quotient, rest};
  }

 private:
  uint32_t size_ = 1, inverse_ = ~0u;
};

}  // namespace xformers::cuda
