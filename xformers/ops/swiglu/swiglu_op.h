// The arguments of the operators of SwiGLU.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::ops {

// ---- whole layers: made of products and gates on every device. The differentiable ones, SwigluFused and
// SwigluPackedw, return the result alone ----
struct SwigluFused {
  static constexpr const char* kName = "swiglu_fused";
  using Result = at::Tensor;
  at::Tensor x, w1;
  OptionalTensor b1{};
  at::Tensor w2{};
  OptionalTensor b2{};
  at::Tensor w3{};
  OptionalTensor b3{};

  static constexpr auto arguments() {
    using A = SwigluFused;
    return std::tuple{arg("x", &A::x),   arg("w1", &A::w1), arg("b1", &A::b1), arg("w2", &A::w2),
                      arg("b2", &A::b2), arg("w3", &A::w3), arg("b3", &A::b3)};
  }
  void check() const;
  void check_shapes() const;  // alone: dtypes may be mixed
};

// Chooses: packed where w1 and w2 lie in memory as one stacked tensor, fused, or PyTorch's own operators.
struct SwigluChoice : SwigluFused {
  static constexpr const char* kName = "swiglu";
};

struct SwigluEager : SwigluFused {
  static constexpr const char* kName = "swiglu_eager";
};

// The shapes of a call.
struct SwigluCheck : SwigluFused {
  static constexpr const char* kName = "swiglu_check";
  using Result = void;
};

// Also returns x1x2 [rows, 2, hidden], which backward needs.
struct SwigluForward : SwigluFused {
  static constexpr const char* kName = "swiglu_forward";
  static constexpr const char* kResults[] = {"out", "x1x2"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
};

struct SwigluPackedw {
  static constexpr const char* kName = "swiglu_packedw";
  using Result = at::Tensor;
  at::Tensor x, w1w2;
  OptionalTensor b1b2{};
  at::Tensor w3{};
  OptionalTensor b3{};

  static constexpr auto arguments() {
    using A = SwigluPackedw;
    return std::tuple{arg("x", &A::x), arg("w1w2", &A::w1w2), arg("b1b2", &A::b1b2), arg("w3", &A::w3),
                      arg("b3", &A::b3)};
  }
  void check_shapes() const;     // of the stacks
  SwigluFused unpacked() const;  // checked; views
};

struct SwigluPackedChoice : SwigluPackedw {
  static constexpr const char* kName = "swiglu_packed";
};

struct SwigluBackward {
  static constexpr const char* kName = "swiglu_backward";
  // dw1w2 [2, hidden, in], db1b2 [2, hidden]; shape [0] where not needed.
  static constexpr const char* kResults[] = {"dx", "dw1w2", "db1b2", "dw3", "db3"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor grad_out, x, x1x2, w1, w2, w3;
  bool need_dx = true, need_dw1w2 = true, need_db1b2 = true, need_dw3 = true, need_db3 = true;

  template <class A>
  static constexpr auto arguments_of(bool writes_x1x2) {
    auto x1x2 = arg("x1x2", &A::x1x2);
    return std::tuple{arg("grad_out", &A::grad_out),
                      arg("x", &A::x),
                      writes_x1x2 ? x1x2.written() : x1x2,
                      arg("w1", &A::w1),
                      arg("w2", &A::w2),
                      arg("w3", &A::w3),
                      arg("need_dx", &A::need_dx),
                      arg("need_dw1w2", &A::need_dw1w2),
                      arg("need_db1b2", &A::need_db1b2),
                      arg("need_dw3", &A::need_dw3),
                      arg("need_db3", &A::need_db3)};
  }
  static constexpr auto arguments() { return arguments_of<SwigluBackward>(/*writes_x1x2=*/false); }
};

// The same, with dx1dx2 left in x1x2's memory.
struct SwigluBackwardInplace : SwigluBackward {
  static constexpr const char* kName = "swiglu_backward_";
  static constexpr auto arguments() { return arguments_of<SwigluBackward>(/*writes_x1x2=*/true); }
};

struct DualGemm {
  static constexpr const char* kName = "dual_gemm_silu_identity_mul";
  static constexpr const char* kResults[] = {"x1", "x2", "x4"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor x, w1;
  OptionalTensor b1{};
  at::Tensor w2{};
  OptionalTensor b2{};

  static constexpr auto arguments() {
    using A = DualGemm;
    return std::tuple{arg("x", &A::x), arg("w1", &A::w1), arg("b1", &A::b1).required(), arg("w2", &A::w2),
                      arg("b2", &A::b2).required()};
  }
};

struct OperandSum {
  static constexpr const char* kName = "gemm_fused_operand_sum";
  using Result = void;
  at::Tensor a, b, out_mm, out_sum;

  static constexpr auto arguments() {
    using A = OperandSum;
    return std::tuple{arg("a", &A::a), arg("b", &A::b), arg("out_mm", &A::out_mm).written(),
                      arg("out_sum", &A::out_sum).written()};
  }
};

// ---- gates, with a kernel per device ----
struct SiluGate {
  static constexpr const char* kName = "silu_gate";
  using Result = at::Tensor;
  at::Tensor x1, x2;

  static constexpr auto arguments() { return std::tuple{arg("x1", &SiluGate::x1), arg("x2", &SiluGate::x2)}; }
  void check() const;
  at::Tensor empty() const { return empty_result(x1); }
};

struct SiluBwFused {
  static constexpr const char* kName = "silu_bw_fused";
  static constexpr const char* kResults[] = {"dx1dx2", "x4"};  // [rows, 2, width], and h
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor x1, x2, dx4;

  static constexpr auto arguments() {
    return std::tuple{arg("x1", &SiluBwFused::x1), arg("x2", &SiluBwFused::x2), arg("dx4", &SiluBwFused::dx4)};
  }
  void check() const;
  Result empty() const { return {empty_result({x1.sym_size(0), 2, x1.sym_size(1)}, x1.options()), empty_result(x1)}; }
};

// Nothing but the gradients.
struct SiluGateBackward {
  static constexpr const char* kName = "silu_gate_backward";
  static constexpr const char* kResults[] = {"dx1", "dx2"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor x1, x2, dh;

  static constexpr auto arguments() {
    using A = SiluGateBackward;
    return std::tuple{arg("x1", &A::x1), arg("x2", &A::x2), arg("dh", &A::dh)};
  }
  void check() const;
  Result empty() const { return {empty_result(x1), empty_result(x1)}; }
};

// dx1dx2 [rows, 2, width] may be the memory of x1 and x2 (each element in its place); h, if needed, takes dh's. Returns
// the sums of dx1dx2 over the rows [2, width]; shape [0] where not needed.
struct SiluGateBackwardOut {
  static constexpr const char* kName = "silu_gate_backward_out";
  using Result = at::Tensor;
  at::Tensor x1, x2, dh, dx1dx2;
  bool need_h = false, need_sums = false;

  static constexpr auto arguments() {
    using A = SiluGateBackwardOut;
    return std::tuple{arg("x1", &A::x1),
                      arg("x2", &A::x2),
                      arg("dh", &A::dh).written(),
                      arg("dx1dx2", &A::dx1dx2).written(),
                      arg("need_h", &A::need_h).required(),
                      arg("need_sums", &A::need_sums).required()};
  }
  void check() const;
  at::Tensor empty() const { return empty_result({2, x1.sym_size(1)}, x1.options(), need_sums); }
};

}  // namespace xformers::ops
