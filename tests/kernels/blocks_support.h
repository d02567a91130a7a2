// Rows of any element type in memory that ends at an inaccessible page, and the instruction sets to run them on.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/kernels/guarded_buffer.h"
#include "tests/reference/rounding.h"
#include "xformers/kernels/cpu/base/isa_choice.h"
#include "xformers/kernels/cpu/base/parallel_for.h"

namespace xformers::testing {

inline constexpr DType kBlockDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

// [rows, width], read and written as doubles; starts as NaN.
class RowBuffer {
 public:
  RowBuffer(DType dtype, int64_t rows, int64_t width)
      : dtype_(dtype), width_(width), count_(rows * width), buffer_(static_cast<size_t>(count_) * size_of(dtype)) {
    for (int64_t i = 0; i < count_; ++i) set(i, std::numeric_limits<double>::quiet_NaN());
  }

  void* data() const { return buffer_.data(); }
  int64_t count() const { return count_; }
  double get(int64_t row, int64_t column) const { return get(row * width_ + column); }
  double get(int64_t i) const { return reference::load(dtype_, at(i)); }
  void set(int64_t i, double value) { reference::store(dtype_, at(i), value); }
  // Numbers in (-2, 2) that repeat for a seed.
  void randomise(uint64_t seed) {
    for (int64_t i = 0; i < count_; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      set(i, static_cast<double>(static_cast<int64_t>(seed) >> 32) / 1073741824.0);
    }
  }

 private:
  void* at(int64_t i) const { return buffer_.data() + static_cast<size_t>(i) * size_of(dtype_); }

  DType dtype_;
  int64_t width_, count_;
  GuardedBuffer buffer_;
};

// What weights are given in.
inline DType compute_of(DType dtype) { return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

// One rounding of the result, or of terms of size `scale` in the compute type.
inline void expect_near(DType dtype, double got, double expected, double scale, const std::string& where) {
  const double rounding = reference::unit_roundoff(dtype) * std::abs(expected) * 1.01;
  const double arithmetic = 16 * reference::unit_roundoff(compute_of(dtype)) * (std::abs(expected) + scale);
  const double tiny = dtype == DType::kFloat16 ? 0x1p-24 : 1e-30;
  EXPECT_LE(std::abs(got - expected), rounding + arithmetic + tiny)
      << where << ": " << got << ", expected " << expected;
}

// body() on every instruction set that this machine has.
inline void for_each_isa(const std::function<void(const std::string& isa)>& body) {
  for (const std::string& isa : cpu::available_isa_names()) {
    setenv("XFORMERS_CPU_ISA", isa.c_str(), 1);
    body(isa);
  }
  unsetenv("XFORMERS_CPU_ISA");
}

}  // namespace xformers::testing
