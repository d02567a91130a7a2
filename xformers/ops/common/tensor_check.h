// Checks of tensor arguments. A failed one throws xformers::Error (ValueError in Python) in the house form:
//   attention: key.head_dim is 96, expected 128.  Fix: only value may have its own head_dim.
//     query [2, 1024, 16, 128] bf16 cpu · key [2, 1024, 16, 96] bf16 cpu · value [2, 1024, 16, 128] bf16 cpu
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string>
#include <string_view>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

std::string describe(const at::Tensor& tensor);         // "[2, 1024, 16, 128] bf16 cpu"
std::string describe_shape(c10::SymIntArrayRef sizes);  // "[2, 1024, 16, 128]"
const char* describe_dtype(at::ScalarType dtype);       // "bf16"

// Names the operation and the tensors that every message of it shows.
class TensorCheck {
 public:
  TensorCheck(const char* where, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value)
      : where_(where), query_(query), key_(key), value_(value) {}

  // `got` and `expected` complete the sentence "<name> is <got>, expected <expected>.".
  [[noreturn]] void fail(std::string_view name, std::string_view got, std::string_view expected,
                         std::string_view fix) const;

  // Sizes may be symbolic; the texts are only built on failure.
  void equal(const char* name, const c10::SymInt& got, const c10::SymInt& expected, const char* fix) const;
  void same_shape(const char* name, c10::SymIntArrayRef got, c10::SymIntArrayRef expected, const char* fix) const;

 private:
  const char* where_;
  const at::Tensor &query_, &key_, &value_;
};

}  // namespace xformers::ops
