#include "xformers/kernels/base/dispatch.h"

#include <string>

#include "xformers/kernels/base/activation.h"
#include "xformers/kernels/base/check.h"

namespace xformers {

void fail_dtype(DType dtype) {
  fail({.where = "kernels",
        .name = "dtype",
        .got = "number " + std::to_string(static_cast<int>(dtype)),
        .expected = "fp32, fp64, bf16 or fp16",
        .fix = "pass one of DType's values"});
}

void fail_activation(Activation activation) {
  fail({.where = "kernels",
        .name = "activation",
        .got = "number " + std::to_string(static_cast<int>(activation)),
        .expected = "one that is named",
        .fix = "pass one of Activation's values"});
}

}  // namespace xformers
