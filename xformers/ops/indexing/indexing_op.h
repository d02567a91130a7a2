// The arguments of the indexing operators.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

struct IndexSelectCat {
  static constexpr const char* kName = "index_select_cat";
  using Result = at::Tensor;
  at::TensorList sources{}, indices{};

  static constexpr auto arguments() {
    return std::tuple{arg("sources", &IndexSelectCat::sources), arg("indices", &IndexSelectCat::indices)};
  }
  void check() const;
  at::Tensor empty() const;
};

// Gradients of the sources, of the given shapes.
struct IndexSelectCatBackward {
  static constexpr const char* kName = "index_select_cat_backward";
  using Result = std::vector<at::Tensor>;
  at::Tensor grad_out;
  at::TensorList indices{};
  c10::SymIntArrayRef rows{}, widths{};

  static constexpr auto arguments() {
    using A = IndexSelectCatBackward;
    return std::tuple{arg("grad_out", &A::grad_out), arg("indices", &A::indices), arg("rows", &A::rows),
                      arg("widths", &A::widths)};
  }
  void check() const;
  Result empty() const;
};

struct ScaledIndexAdd {
  static constexpr const char* kName = "scaled_index_add_";
  using Result = void;
  at::Tensor input, index, source;
  OptionalTensor scaling{};
  double alpha = 1;

  static constexpr auto arguments() {
    using A = ScaledIndexAdd;
    return std::tuple{arg("input", &A::input).written(), arg("index", &A::index), arg("source", &A::source),
                      arg("scaling", &A::scaling), arg("alpha", &A::alpha)};
  }
  void check() const;
  void empty() const {}
};

struct ScaledIndexAddBackward {
  static constexpr const char* kName = "scaled_index_add_backward";
  static constexpr const char* kResults[] = {"dsource", "dscaling"};  // shape [0] where not needed
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor grad_out, index, source;
  OptionalTensor scaling{};
  double alpha = 1;
  bool need_dsource = true, need_dscaling = true;

  static constexpr auto arguments() {
    using A = ScaledIndexAddBackward;
    return std::tuple{arg("grad_out", &A::grad_out),
                      arg("index", &A::index),
                      arg("source", &A::source),
                      arg("scaling", &A::scaling),
                      arg("alpha", &A::alpha),
                      arg("need_dsource", &A::need_dsource),
                      arg("need_dscaling", &A::need_dscaling)};
  }
  void check() const;
  at::ScalarType dscaling_dtype() const { return (scaling ? *scaling : grad_out).scalar_type(); }
  at::Tensor empty_dsource() const { return empty_result(source.sym_sizes(), grad_out.options(), need_dsource); }
  at::Tensor empty_dscaling(at::ScalarType dtype) const {
    return empty_result({grad_out.sym_size(2)}, grad_out.options().dtype(dtype), need_dscaling);
  }
  Result empty() const { return {empty_dsource(), empty_dscaling(dscaling_dtype())}; }
};

}  // namespace xformers::ops
