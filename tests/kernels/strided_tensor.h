// A tensor of up to five dimensions in guarded memory, read and written as doubles. Memory that belongs to no element
// holds NaN before a kernel runs and must hold it afterwards.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/cases/attention.h"
#include "tests/kernels/guarded_buffer.h"

namespace xformers::testing {

using Sizes = std::array<int64_t, 5>;

class StridedTensor {
 public:
  StridedTensor() = default;
  // Own memory, `offset` elements in; NaN everywhere, or, where the span is larger than `kFilledSpan`, in the elements.
  StridedTensor(DType dtype, Sizes sizes, Sizes strides, int64_t offset = 0);
  // Another part of the memory of `other`.
  StridedTensor(const StridedTensor& other, Sizes sizes, Sizes strides, int64_t offset);

  DType dtype() const { return dtype_; }
  const Sizes& sizes() const { return sizes_; }
  int64_t stride(int dim) const { return strides_[dim]; }
  void* data() const;
  int64_t numel() const;

  double get(const Sizes& index) const;
  void set(const Sizes& index, double value);
  void fill(const std::function<double(const Sizes&)>& value);
  void fill(double value) {
    fill([=](const Sizes&) { return value; });
  }
  // The bits of a 4-byte element.
  uint32_t get_word(const Sizes& index) const;
  void set_word(const Sizes& index, uint32_t word);
  void fill_words(const std::function<uint32_t(const Sizes&)>& word);
  std::vector<double> values() const;  // all elements, the last index runs fastest
  std::vector<unsigned char> bytes() const;

  // The place of the first byte between the elements that is no longer NaN, or -1.
  int64_t damaged_byte(const std::vector<StridedTensor>& sharing = {}) const;

  static constexpr int64_t kFilledSpan = int64_t{1} << 28;

 private:
  template <class Fn>
  void for_each_index(const Fn& fn) const;
  unsigned char* element(const Sizes& index) const;
  int64_t span() const;

  DType dtype_ = DType::kFloat32;
  Sizes sizes_{}, strides_{};
  int64_t offset_ = 0;
  std::shared_ptr<GuardedBuffer> buffer_;
};

}  // namespace xformers::testing
