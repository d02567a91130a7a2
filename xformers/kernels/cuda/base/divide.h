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

}  // namespace xformers::cuda
