// Checks of tensor arguments. A failed one throws xformers::Error (ValueError in Python) in the house form:
//   rms_norm: weight is [128] fp32 cpu, expected [256].  Fix: one weight per element of the last dimension.
// Sizes may be symbolic; texts are only built on failure.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>

#include "xformers/kernels/base/check.h"

namespace xformers::ops {

using OptionalTensor = std::optional<at::Tensor>;
inline OptionalTensor to_optional(const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

std::string describe(const at::Tensor& tensor);         // "[2, 1024, 16, 128] bf16 cpu"
std::string describe(const OptionalTensor& tensor);     // the same, or "None"
std::string describe_shape(c10::SymIntArrayRef sizes);  // "[2, 1024, 16, 128]"
const char* describe_dtype(at::ScalarType dtype);       // "bf16"

// fp32, fp64, bf16, fp16: what kernels have.
bool is_kernel_dtype(at::ScalarType dtype);

// What an element type is computed in, and statistics are kept in: fp32, fp64 for fp64.
inline at::ScalarType compute_dtype(at::ScalarType dtype) { return dtype == at::kDouble ? at::kDouble : at::kFloat; }
inline at::ScalarType compute_dtype(const at::Tensor& t) { return compute_dtype(t.scalar_type()); }

// The checks of one operation, whose name every message begins with.
class Check {
 public:
  explicit Check(const char* where) : where_(where) {}
  virtual ~Check() = default;

  // `got` and `expected` complete the sentence "<name> is <got>, expected <expected>.".
  [[noreturn]] void fail(std::string_view name, std::string_view got, std::string_view expected,
                         std::string_view fix) const;

  void equal(const char* name, const c10::SymInt& got, const c10::SymInt& expected, const char* fix) const;
  void dims(const char* name, const at::Tensor& t, int64_t expected, const char* layout) const;  // "[batch, dim]"
  void shape(const char* name, const at::Tensor& t, c10::SymIntArrayRef expected, const char* fix) const;
  void same_shape(const char* name, c10::SymIntArrayRef got, c10::SymIntArrayRef expected, const char* fix) const;
  void same_device(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name) const;
  void same_dtype(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name) const;
  void like(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name,
            const char* fix) const;  // shape, dtype and device
  void floating(const char* name, const at::Tensor& t) const;
  void statistics(const char* name, const at::Tensor& t) const;  // an lse or its gradient: fp32, or fp64
  void contiguous(const char* name, const at::Tensor& t) const;
  // Of a tensor that is written in place: no element may stand for two.
  void no_overlap(const char* name, const at::Tensor& t) const;

 protected:
  virtual std::string context() const { return ""; }  // behind every message

 private:
  const char* where_;
};

}  // namespace xformers::ops
