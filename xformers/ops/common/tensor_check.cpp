#include "xformers/ops/common/tensor_check.h"

#include <sstream>

namespace xformers::ops {

const char* describe_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat: return "fp32";
    case at::kDouble: return "fp64";
    case at::kBFloat16: return "bf16";
    case at::kHalf: return "fp16";
    case at::kInt: return "int32";
    case at::kLong: return "int64";
    default: return c10::toString(dtype);
  }
}

std::string describe_shape(c10::SymIntArrayRef sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

std::string describe(const at::Tensor& tensor) {
  if (!tensor.defined()) return "None";
  return describe_shape(tensor.sym_sizes()) + " " + describe_dtype(tensor.scalar_type()) + " " + tensor.device().str();
}

void TensorCheck::fail(std::string_view name, std::string_view got, std::string_view expected,
                       std::string_view fix) const {
  std::ostringstream text;
  text << where_ << ": " << name << " is " << got << ", expected " << expected << ".  Fix: " << fix << ".\n  query "
       << describe(query_) << " · key " << describe(key_) << " · value " << describe(value_);
  throw Error(text.str());
}

void TensorCheck::equal(const char* name, const c10::SymInt& got, const c10::SymInt& expected, const char* fix) const {
  if (got == expected) return;
  std::ostringstream got_text, expected_text;
  got_text << got;
  expected_text << expected;
  fail(name, got_text.str(), expected_text.str(), fix);
}

void TensorCheck::same_shape(const char* name, c10::SymIntArrayRef got, c10::SymIntArrayRef expected,
                             const char* fix) const {
  bool same = got.size() == expected.size();
  for (size_t i = 0; same && i < got.size(); ++i) same = got[i] == expected[i];
  if (!same) fail(name, describe_shape(got), describe_shape(expected), fix);
}

}  // namespace xformers::ops
