// Schemas, public functions and checks.
#include "xformers/ops/swiglu/swiglu.h"

#include <torch/library.h>

#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {
namespace {

void check_bias(const ArgumentCheck& check, const char* name, const OptionalTensor& bias, const at::Tensor& weight,
                const at::Tensor& x) {
  if (!bias) return;
  check.shape(name, *bias, {weight.sym_size(0)}, "one element per row of its weight");
  check.same_dtype(name, *bias, x, "x");
  check.same_device(name, *bias, x, "x");
}

}  // namespace

void check_swiglu(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                  const OptionalTensor& b2, const at::Tensor& w3, const OptionalTensor& b3) {
  const ArgumentCheck check("swiglu");
  check.floating("x", x);
  if (x.dim() < 1) check.fail("x", describe(x), "[..., in]", "give it at least one dimension");
  check.dims("w1", w1, 2, "[hidden, in]");
  check.shape("w1", w1, {w1.sym_size(0), x.sym_size(-1)}, "its columns are the last dimension of x");
  check.shape("w2", w2, w1.sym_sizes(), "w1 and w2 have one shape");
  check.dims("w3", w3, 2, "[out, hidden]");
  check.shape("w3", w3, {w3.sym_size(0), w1.sym_size(0)}, "its columns are the rows of w1");
  for (const auto& [name, weight] : {std::pair{"w1", &w1}, std::pair{"w2", &w2}, std::pair{"w3", &w3}}) {
    check.same_dtype(name, *weight, x, "x");
    check.same_device(name, *weight, x, "x");
  }
  if (b1.has_value() != b2.has_value()) {
    check.fail("b2", b2 ? "given without b1" : "None beside b1", "both or neither", "give both biases");
  }
  check_bias(check, "b1", b1, w1, x);
  check_bias(check, "b2", b2, w2, x);
  check_bias(check, "b3", b3, w3, x);
}

void check_gate(const char* where, const at::Tensor& x1, const at::Tensor& x2, const at::Tensor* dx4,
                const char* dx4_name) {
  const ArgumentCheck check(where);
  check.floating("x1", x1);
  check.dims("x1", x1, 2, "[rows, width]");
  for (const auto& [name, t] : {std::pair{"x2", &x2}, std::pair{dx4_name, dx4}}) {
    if (!t) continue;
    check.shape(name, *t, x1.sym_sizes(), "it has the shape of x1");
    check.same_dtype(name, *t, x1, "x1");
    check.same_device(name, *t, x1, "x1");
  }
}

void check_gate_backward_out(const at::Tensor& x1, const at::Tensor& x2, const at::Tensor& dh,
                             const at::Tensor& dx1dx2) {
  const ArgumentCheck check("silu_gate_backward_out");
  check_gate("silu_gate_backward_out", x1, x2, &dh, "dh");
  check.contiguous("dh", dh);
  check.contiguous("dx1dx2", dx1dx2);
  check.shape("dx1dx2", dx1dx2, {x1.sym_size(0), 2, x1.sym_size(1)}, "it takes the gradients of x1 and x2");
  check.same_dtype("dx1dx2", dx1dx2, x1, "x1");
  check.same_device("dx1dx2", dx1dx2, x1, "x1");
}

XFORMERS_TYPED_OP(swiglu_fused_op, SwigluFused, "swiglu_fused")
XFORMERS_TYPED_OP(swiglu_packedw_op, SwigluPackedw, "swiglu_packedw")
XFORMERS_TYPED_OP(swiglu_forward_op, SwigluForward, "swiglu_forward")
XFORMERS_TYPED_OP(swiglu_backward_op, SwigluBackward, "swiglu_backward")
XFORMERS_TYPED_OP(swiglu_backward_inplace_op, SwigluBackwardInplace, "swiglu_backward_")
XFORMERS_TYPED_OP(silu_gate_op, SiluGate, "silu_gate")
XFORMERS_TYPED_OP(silu_bw_fused_op, SiluBwFused, "silu_bw_fused")
XFORMERS_TYPED_OP(silu_gate_backward_op, SiluGateBackward, "silu_gate_backward")
XFORMERS_TYPED_OP(silu_gate_backward_out_op, SiluGateBackwardOut, "silu_gate_backward_out")

at::Tensor swiglu(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                  const OptionalTensor& b2, const at::Tensor& w3, const OptionalTensor& b3) {
  return swiglu_fused_op().call(x, w1, b1, w2, b2, w3, b3);
}

at::Tensor swiglu_packed(const at::Tensor& x, const at::Tensor& w1w2, const OptionalTensor& b1b2, const at::Tensor& w3,
                         const OptionalTensor& b3) {
  return swiglu_packedw_op().call(x, w1w2, b1b2, w3, b3);
}

at::Tensor silu_gate(const at::Tensor& x1, const at::Tensor& x2) { return silu_gate_op().call(x1, x2); }

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("swiglu_fused(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor w3, Tensor? b3=None) -> Tensor",
        tags);
  m.def("swiglu_packedw(Tensor x, Tensor w1w2, Tensor? b1b2, Tensor w3, Tensor? b3=None) -> Tensor", tags);
  m.def(
      "swiglu_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor w3, Tensor? b3=None) -> "
      "(Tensor out, Tensor x1x2)",
      tags);
  for (const auto& [name, x1x2] : {std::pair{"swiglu_backward", "Tensor"}, {"swiglu_backward_", "Tensor(a!)"}}) {
    const std::string schema =
        std::string(name) + "(Tensor grad_out, Tensor x, " + x1x2 +
        " x1x2, Tensor w1, Tensor w2, Tensor w3, bool need_dx=True, bool need_dw1w2=True, bool need_db1b2=True, "
        "bool need_dw3=True, bool need_db3=True) -> "
        "(Tensor dx, Tensor dw1w2, Tensor db1b2, Tensor dw3, Tensor db3)";
    m.def(schema.c_str(), tags);
  }
  m.def("silu_gate(Tensor x1, Tensor x2) -> Tensor", tags);
  m.def("silu_bw_fused(Tensor x1, Tensor x2, Tensor dx4) -> (Tensor dx1dx2, Tensor x4)", tags);
  m.def("silu_gate_backward(Tensor x1, Tensor x2, Tensor dh) -> (Tensor dx1, Tensor dx2)", tags);
  m.def(
      "silu_gate_backward_out(Tensor x1, Tensor x2, Tensor(a!) dh, Tensor(b!) dx1dx2, bool need_h, bool need_sums) -> "
      "Tensor",
      tags);
  m.def(
      "dual_gemm_silu_identity_mul(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2) -> "
      "(Tensor x1, Tensor x2, Tensor x4)",
      tags);
  m.def("gemm_fused_operand_sum(Tensor a, Tensor b, Tensor(a!) out_mm, Tensor(b!) out_sum) -> ()", tags);
}
