// Quotients by a number known before the kernel runs, without a division.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "xformers/kernels/base/inline.h"

namespace xformers {

// Of numbers 0 <= n < 2^(bits - 1), bits those of N (uint32_t or int64_t). With s = bits - 1 + ceil(log2(size)),
// n * ceil(2^s / size) exceeds n / size * 2^s by less than 2^s / size: the quotient is exact.
template <class N>
class Divisor {
  using Wide = std::conditional_t<sizeof(N) == 4, uint64_t, unsigned __int128>;
  static constexpr int kBits = 8 * sizeof(N);
  using Unsigned = std::make_unsigned_t<N>;
  N size_ = 1;
  Unsigned factor_ = Unsigned{1} << (kBits - 1);
  int shift_ = 0;  // s - (bits - 1)

 public:
  struct Result {
    N quotient, rest;
  };

  Divisor() = default;
  constexpr explicit Divisor(int64_t size)
      : size_(static_cast<N>(size)), shift_(std::bit_width(static_cast<Unsigned>(size - 1))) {
    const Wide wide = static_cast<Wide>(size);
    factor_ = static_cast<Unsigned>(((Wide{1} << (kBits - 1 + shift_)) + (wide - 1)) / wide);
  }

  XFORMERS_INLINE N size() const { return size_; }
  XFORMERS_INLINE N quotient(N n) const {
    const Wide product = Wide{static_cast<Unsigned>(n) * 2} * factor_;
    return static_cast<N>(static_cast<Unsigned>(product >> kBits) >> shift_);
  }
  XFORMERS_INLINE Result divide(N n) const {
    const N q = quotient(n);
    return {q, n - q * size_};
  }
};

}  // namespace xformers
