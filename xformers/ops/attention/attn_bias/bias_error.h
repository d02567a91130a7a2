// How a bias says what is wrong with it.
#pragma once

#include <string>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// "attn_bias: <what>, expected <expected>.  Fix: <fix>."
[[noreturn]] inline void bias_error(const std::string& what, const std::string& expected, const std::string& fix) {
  throw Error("attn_bias: " + what + ", expected " + expected + ".  Fix: " + fix + ".");
}

}  // namespace xformers::ops
