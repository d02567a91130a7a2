// Checks of the arguments of the operators around attention. A failed one throws xformers::Error (ValueError in
// Python):
//   rms_norm: weight is [128] fp32 cpu, expected [256].  Fix: one weight per element of the last dimension.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string>
#include <string_view>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/common/tensor_check.h"

namespace xformers::ops {

using OptionalTensor = std::optional<at::Tensor>;

[[noreturn]] void fail_argument(std::string_view where, std::string_view name, std::string_view got,
                                std::string_view expected, std::string_view fix);

class ArgumentCheck {
 public:
  explicit ArgumentCheck(const char* where) : where_(where) {}

  [[noreturn]] void fail(std::string_view name, std::string_view got, std::string_view expected,
                         std::string_view fix) const {
    fail_argument(where_, name, got, expected, fix);
  }
  void dims(const char* name, const at::Tensor& t, int64_t expected, const char* layout) const;  // "[batch, dim]"
  void shape(const char* name, const at::Tensor& t, c10::SymIntArrayRef expected, const char* fix) const;
  void same_device(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name) const;
  void same_dtype(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name) const;
  void floating(const char* name, const at::Tensor& t) const;  // fp32, fp64, bf16, fp16
  void contiguous(const char* name, const at::Tensor& t) const;
  // Of a tensor that is written in place: no element may stand for two.
  void no_overlap(const char* name, const at::Tensor& t) const;

 private:
  const char* where_;
};

// What an element type is computed in: fp32, fp64 for fp64.
inline at::ScalarType compute_dtype(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Defines the function that gives an operator of this library as a typed handle.
#define XFORMERS_TYPED_OP(function, Type, name)                                                                 \
  const c10::TypedOperatorHandle<Type>& function() {                                                            \
    static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("xformers::" name, "").typed<Type>(); \
    return op;                                                                                                  \
  }

}  // namespace xformers::ops
