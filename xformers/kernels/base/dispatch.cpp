#include "xformers/kernels/base/dispatch.h"

#include "xformers/kernels/base/activation.h"
#include "xformers/kernels/base/error.h"

namespace xformers {

void fail_dtype(DType dtype) {
  throw Error("kernels: dtype number " + std::to_string(static_cast<int>(dtype)) +
              ", expected fp32, fp64, bf16 or fp16.  Fix: pass one of DType's values");
}

void fail_activation(Activation activation) {
  throw Error("kernels: activation number " + std::to_string(static_cast<int>(activation)) +
              ", expected one that is named.  Fix: pass one of Activation's values");
}

}  // namespace xformers
