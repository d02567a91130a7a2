// What is known at run time becomes a template argument. A value that is not listed is an error, never the nearest one.
#pragma once

#include <string>

#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/base/error.h"

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

// The element types of a device.
template <class Float32, class Float64, class BFloat16, class Float16>
struct ElementTypes {};

// Calls fn(T{}) with the element type.
template <class F32, class F64, class B16, class F16, class Fn>
auto dispatch(ElementTypes<F32, F64, B16, F16>, DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kFloat32: return fn(F32{});
    case DType::kFloat64: return fn(F64{});
    case DType::kBFloat16: return fn(B16{});
    case DType::kFloat16: return fn(F16{});
  }
  throw Error("dtype has the number " + std::to_string(static_cast<int>(dtype)) +
              ", expected one of DType.  Fix: set it");
}

}  // namespace xformers
