#include "xformers/ops/common/arguments.h"

#include <ATen/MemoryOverlap.h>

namespace xformers::ops {

void fail_argument(std::string_view where, std::string_view name, std::string_view got, std::string_view expected,
                   std::string_view fix) {
  std::string text;
  for (std::string_view part :
       {where, std::string_view(": "), name, std::string_view(" is "), got, std::string_view(", expected "), expected,
        std::string_view(".  Fix: "), fix, std::string_view(".")}) {
    text += part;
  }
  throw Error(text);
}

void ArgumentCheck::dims(const char* name, const at::Tensor& t, int64_t expected, const char* layout) const {
  if (t.dim() != expected)
    fail(name, describe(t), std::string(layout), "give it " + std::to_string(expected) + " dimensions");
}

void ArgumentCheck::shape(const char* name, const at::Tensor& t, c10::SymIntArrayRef expected, const char* fix) const {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.sym_size(i) == expected[i];
  if (!same) fail(name, describe(t), describe_shape(expected), fix);
}

void ArgumentCheck::same_device(const char* name, const at::Tensor& t, const at::Tensor& as,
                                const char* as_name) const {
  if (t.device() == as.device()) return;
  fail(std::string(name) + ".device", t.device().str(), as.device().str() + ", that of " + as_name,
       "move both to one device");
}

void ArgumentCheck::same_dtype(const char* name, const at::Tensor& t, const at::Tensor& as, const char* as_name) const {
  if (t.scalar_type() == as.scalar_type()) return;
  fail(std::string(name) + ".dtype", describe_dtype(t.scalar_type()),
       std::string(describe_dtype(as.scalar_type())) + ", that of " + as_name, "convert one of them with .to(dtype)");
}

void ArgumentCheck::floating(const char* name, const at::Tensor& t) const {
  switch (t.scalar_type()) {
    case at::kFloat:
    case at::kDouble:
    case at::kBFloat16:
    case at::kHalf: return;
    default:
      fail(std::string(name) + ".dtype", describe_dtype(t.scalar_type()), "fp32, fp64, bf16 or fp16", "convert it");
  }
}

void ArgumentCheck::contiguous(const char* name, const at::Tensor& t) const {
  if (t.is_contiguous()) return;
  fail(name, describe(t) + " with strides " + describe_shape(t.sym_strides()), "a contiguous tensor",
       "call .contiguous() on it");
}

void ArgumentCheck::no_overlap(const char* name, const at::Tensor& t) const {
  if (at::has_internal_overlap(t) != at::MemOverlap::Yes) return;
  fail(name, describe(t) + " with strides " + describe_shape(t.sym_strides()), "elements that lie apart",
       "clone() the expanded tensor before writing into it");
}

}  // namespace xformers::ops
