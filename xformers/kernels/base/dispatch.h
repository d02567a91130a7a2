// What is known at run time becomes a template argument. A value that is not listed is an error, never the nearest one.
#pragma once

#include <string>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/base/inline.h"

namespace xformers {

// Calls fn<value>() for one of kValues. `what` names the value.
template <int... kValues, class Fn>
void dispatch(const char* what, int value, const Fn& fn) {
  const bool found = ((value == kValues ? (fn.template operator()<kValues>(), true) : false) || ...);
  if (found) return;
  std::string expected;
  ((expected += (expected.empty() ? "" : ", ") + std::to_string(kValues)), ...);
  throw Error(std::string(what) + " is " + std::to_string(value) + ", expected one of " + expected +
              ".  Fix: this build has no code for it");
}

[[noreturn]] void fail_dtype(DType dtype);  // Error; not inline: thrown outside the units of instruction sets

// Calls fn(T()) with the type of an element; BFloat and Half are those of the device. On the GPU too.
template <class BFloat, class Half, class Fn>
XFORMERS_INLINE decltype(auto) dispatch_dtype(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kFloat32: return fn(float());
    case DType::kFloat64: return fn(double());
    case DType::kBFloat16: return fn(BFloat());
    case DType::kFloat16: return fn(Half());
  }
#if defined(__CUDA_ARCH__)
  __trap();
#else
  fail_dtype(dtype);
#endif
}

}  // namespace xformers
