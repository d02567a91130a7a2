// Parameters that a module may lack, as the operators take them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace xformers::nn {

inline std::optional<at::Tensor> to_optional(const at::Tensor& parameter) {
  return parameter.defined() ? std::optional<at::Tensor>(parameter) : std::nullopt;
}

}  // namespace xformers::nn
