#include "tests/kernels/strided_tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "tests/reference/rounding.h"

namespace xformers::testing {
namespace {
constexpr int kNaNByte = 0xFF;  // repeated, a NaN of every element type
}

StridedTensor::StridedTensor(DType dtype, Sizes sizes, Sizes strides, int64_t offset)
    : dtype_(dtype), sizes_(sizes), strides_(strides), offset_(offset) {
  buffer_ = std::make_shared<GuardedBuffer>(static_cast<size_t>(offset + span()) * size_of(dtype));
  if (span() <= kFilledSpan) {
    std::memset(buffer_->data(), kNaNByte, buffer_->size());
  } else {
    fill(std::numeric_limits<double>::quiet_NaN());
  }
}

StridedTensor::StridedTensor(const StridedTensor& other, Sizes sizes, Sizes strides, int64_t offset)
    : dtype_(other.dtype_), sizes_(sizes), strides_(strides), offset_(offset), buffer_(other.buffer_) {}

int64_t StridedTensor::numel() const {
  int64_t count = 1;
  for (int64_t size : sizes_) count *= size;
  return count;
}

int64_t StridedTensor::span() const {
  if (numel() == 0) return 0;
  int64_t last = 0;
  for (int dim = 0; dim < 5; ++dim) last += (sizes_[dim] - 1) * strides_[dim];
  return last + 1;
}

void* StridedTensor::data() const {
  return buffer_ == nullptr ? nullptr : buffer_->data() + offset_ * static_cast<int64_t>(size_of(dtype_));
}

unsigned char* StridedTensor::element(const Sizes& index) const {
  int64_t offset = offset_;
  for (int dim = 0; dim < 5; ++dim) offset += index[dim] * strides_[dim];
  return buffer_->data() + offset * static_cast<int64_t>(size_of(dtype_));
}

template <class Fn>
void StridedTensor::for_each_index(const Fn& fn) const {
  if (numel() == 0) return;
  Sizes i{};
  for (i[0] = 0; i[0] < sizes_[0]; ++i[0])
    for (i[1] = 0; i[1] < sizes_[1]; ++i[1])
      for (i[2] = 0; i[2] < sizes_[2]; ++i[2])
        for (i[3] = 0; i[3] < sizes_[3]; ++i[3])
          for (i[4] = 0; i[4] < sizes_[4]; ++i[4]) fn(i);
}

double StridedTensor::get(const Sizes& index) const { return reference::load(dtype_, element(index)); }
void StridedTensor::set(const Sizes& index, double value) { reference::store(dtype_, element(index), value); }

void StridedTensor::fill(const std::function<double(const Sizes&)>& value) {
  for_each_index([&](const Sizes& index) { set(index, value(index)); });
}

uint32_t StridedTensor::get_word(const Sizes& index) const {
  uint32_t word;
  std::memcpy(&word, element(index), sizeof word);
  return word;
}
void StridedTensor::set_word(const Sizes& index, uint32_t word) { std::memcpy(element(index), &word, sizeof word); }
void StridedTensor::fill_words(const std::function<uint32_t(const Sizes&)>& word) {
  for_each_index([&](const Sizes& index) { set_word(index, word(index)); });
}

std::vector<double> StridedTensor::values() const {
  std::vector<double> result;
  result.reserve(static_cast<size_t>(numel()));
  for_each_index([&](const Sizes& index) { result.push_back(get(index)); });
  return result;
}

std::vector<unsigned char> StridedTensor::bytes() const {
  std::vector<unsigned char> result;
  for_each_index([&](const Sizes& index) {
    const unsigned char* begin = element(index);
    result.insert(result.end(), begin, begin + size_of(dtype_));
  });
  return result;
}

int64_t StridedTensor::damaged_byte(const std::vector<StridedTensor>& sharing) const {
  if (buffer_ == nullptr || buffer_->size() > static_cast<size_t>(kFilledSpan) * size_of(dtype_)) return -1;
  std::vector<unsigned char> rest(buffer_->data(), buffer_->data() + buffer_->size());
  const auto forget = [&](const StridedTensor& tensor) {
    tensor.for_each_index([&](const Sizes& index) {
      std::memset(rest.data() + (tensor.element(index) - buffer_->data()), kNaNByte, size_of(dtype_));
    });
  };
  forget(*this);
  for (const StridedTensor& tensor : sharing) forget(tensor);
  const auto damaged = std::find_if(rest.begin(), rest.end(), [](unsigned char byte) { return byte != kNaNByte; });
  return damaged == rest.end() ? -1 : damaged - rest.begin();
}

}  // namespace xformers::testing
