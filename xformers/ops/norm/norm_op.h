// The arguments of the normalisation operators.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

struct RmsNorm {
  static constexpr const char* kName = "rms_norm";
  using Result = at::Tensor;
  at::Tensor x;
  OptionalTensor weight{};
  double eps = 1e-6;

  static constexpr auto arguments() {
    return std::tuple{arg("x", &RmsNorm::x), arg("weight", &RmsNorm::weight), arg("eps", &RmsNorm::eps)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(x); }
};

struct RmsNormAdd {
  static constexpr const char* kName = "rms_norm_add_";
  using Result = at::Tensor;
  at::Tensor x, y;
  OptionalTensor weight{};
  double eps = 1e-6;

  static constexpr auto arguments() {
    return std::tuple{arg("x", &RmsNormAdd::x).written(), arg("y", &RmsNormAdd::y), arg("weight", &RmsNormAdd::weight),
                      arg("eps", &RmsNormAdd::eps)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(x); }
};

struct LayerNorm {
  static constexpr const char* kName = "layer_norm";
  using Result = at::Tensor;
  at::Tensor x;
  OptionalTensor weight{}, bias{};
  double eps = 1e-6;

  static constexpr auto arguments() {
    return std::tuple{arg("x", &LayerNorm::x), arg("weight", &LayerNorm::weight), arg("bias", &LayerNorm::bias),
                      arg("eps", &LayerNorm::eps)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(x); }
};

// sum = x + scale * residual, rounded to their dtype, and its layer norm.
struct LayerNormOfSum {
  static constexpr const char* kName = "layer_norm_of_sum";
  static constexpr const char* kResults[] = {"out", "sum"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor x, residual;
  OptionalTensor weight{}, bias{};
  double eps = 1e-6, scale = 1;

  static constexpr auto arguments() {
    using A = LayerNormOfSum;
    return std::tuple{arg("x", &A::x),       arg("residual", &A::residual), arg("weight", &A::weight),
                      arg("bias", &A::bias), arg("eps", &A::eps),           arg("scale", &A::scale)};
  }
  void check() const;
  Result empty() const { return {empty_result(x), empty_result(x)}; }
};

// What both backward operators take. Gradients of weight and bias have the dtype of weight or, without one, of x.
struct NormBackward {
  at::Tensor grad_out, x;
  OptionalTensor weight{};
  double eps = 1e-6;
  bool need_dx = true, need_dweight = true;

  static constexpr auto arguments() {
    return std::tuple{arg("grad_out", &NormBackward::grad_out), arg("x", &NormBackward::x),
                      arg("weight", &NormBackward::weight),     arg("eps", &NormBackward::eps),
                      arg("need_dx", &NormBackward::need_dx),   arg("need_dweight", &NormBackward::need_dweight)};
  }
  at::ScalarType weight_dtype() const { return (weight ? *weight : x).scalar_type(); }
  at::Tensor empty_dx() const { return empty_result(x, need_dx); }
  at::Tensor empty_dweight(bool wanted, at::ScalarType dtype) const {
    return empty_result({x.sym_size(-1)}, x.options().dtype(dtype), wanted);
  }
};

struct RmsNormBackward : NormBackward {
  static constexpr const char* kName = "rms_norm_backward";
  static constexpr const char* kResults[] = {"dx", "dweight"};  // shape [0] where not needed
  using Result = std::tuple<at::Tensor, at::Tensor>;

  void check() const;
  Result empty() const { return {empty_dx(), empty_dweight(need_dweight, weight_dtype())}; }
};

struct LayerNormBackward : NormBackward {
  static constexpr const char* kName = "layer_norm_backward";
  static constexpr const char* kResults[] = {"dx", "dweight", "dbias"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  bool need_dbias = true;

  static constexpr auto arguments() {
    return std::tuple_cat(NormBackward::arguments(), std::tuple{arg("need_dbias", &LayerNormBackward::need_dbias)});
  }
  void check() const;
  Result empty() const {
    return {empty_dx(), empty_dweight(need_dweight, weight_dtype()), empty_dweight(need_dbias, weight_dtype())};
  }
};

}  // namespace xformers::ops
