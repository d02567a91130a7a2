#include "xformers/ops/common/check.h"

#include <ATen/MemoryOverlap.h>

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

std::string describe(const OptionalTensor& tensor) { return describe(tensor.value_or(at::Tensor())); }

bool is_kernel_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

void Check::fail(std::string_view name, std::string_view got, std::string_view expected, std::string_view fix) const {
  throw Error(to_text({.where = where_, .name = name, .got = got, .expected = expected, .fix = fix}) + context());
}

void Check::equal(const char* name, const c10::SymInt& got, const c10::SymInt& expected, const char* fix) const {
  if (got != expected) fail(name, c10::str(got), c10::str(expected), fix);
}

void Check::dims(const char* name, const at::Tensor& t, int64_t expected, const char* layout) const {
  if (t.dim() != expected)
    fail(name, describe(t), std::string(layout), "give it " + std::to_string(expected) + " dimensions");
}

void Check::shape(const char* name, const at::Tensor& t, c10::SymIntArrayRef expected, const char* fix) const {
  if (t.sym_sizes() != expected) fail(name, describe(t), describe_shape(expected), fix);
}

void Check::same_shape(const char* name, c10::SymIntArrayRef got, c10::SymIntArrayRef expected, const char* fix) const {
  if (got != expected) fail(name, describe_shape(got), describe_shape(expected), fix);
}

void Check::same_device(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name) const {
  if (t.device() == as.device()) return;
  fail(std::string(name) + ".device", t.device().str(), as.device().str() + ", that of " + as_name,
       "move both to one device");
}

void Check::same_dtype(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name) const {
  if (t.scalar_type() == as.scalar_type()) return;
  fail(std::string(name) + ".dtype", describe_dtype(t.scalar_type()),
       std::string(describe_dtype(as.scalar_type())) + ", that of " + as_name, "convert one of them with .to(dtype)");
}

void Check::like(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name,
                 const char* fix) const {
  shape(name, t, as.sym_sizes(), fix);
  same_dtype(name, t, as, as_name);
  same_device(name, t, as, as_name);
}

void Check::floating(const char* name, const at::Tensor& t) const {
  if (is_kernel_dtype(t.scalar_type())) return;
  fail(std::string(name) + ".dtype", describe_dtype(t.scalar_type()), "fp32, fp64, bf16 or fp16", "convert it");
}

void Check::statistics(const char* name, const at::Tensor& t) const {
  if (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble) return;
  fail(std::string(name) + ".dtype", describe_dtype(t.scalar_type()), "fp32 or fp64", "convert with .float()");
}

void Check::contiguous(const char* name, const at::Tensor& t) const {
  if (t.is_contiguous()) return;
  fail(name, describe(t) + " with strides " + describe_shape(t.sym_strides()), "a contiguous tensor",
       "call .contiguous() on it");
}

void Check::no_overlap(const char* name, const at::Tensor& t) const {
  if (at::has_internal_overlap(t) != at::MemOverlap::Yes) return;
  fail(name, describe(t) + " with strides " + describe_shape(t.sym_strides()), "elements that lie apart",
       "clone() the expanded tensor before writing into it");
}

}  // namespace xformers::ops
