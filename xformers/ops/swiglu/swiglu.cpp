// Schemas, public functions and checks.
#include "xformers/ops/swiglu/swiglu.h"

#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {
namespace {

// `others`: tensors like x1.
void check_gate(const Check& check, const at::Tensor& x1,
                std::initializer_list<std::pair<const char*, const at::Tensor&>> others) {
  check.floating("x1", x1);
  check.dims("x1", x1, 2, "[rows, width]");
  for (const auto& [name, t] : others) check.like(name, t, x1, "x1", "it has the shape of x1");
}

}  // namespace

void SwigluFused::check_shapes() const {
  const Check check("swiglu");
  if (x.dim() < 1) check.fail("x", describe(x), "[..., in]", "give it at least one dimension");
  check.dims("w1", w1, 2, "[hidden, in]");
  check.shape("w1", w1, {w1.sym_size(0), x.sym_size(-1)}, "its columns are the last dimension of x");
  check.shape("w2", w2, w1.sym_sizes(), "w1 and w2 have one shape");
  check.dims("w3", w3, 2, "[out, hidden]");
  check.shape("w3", w3, {w3.sym_size(0), w1.sym_size(0)}, "its columns are the rows of w1");
  const auto bias = [&](const char* name, const OptionalTensor& b, const at::Tensor& weight) {
    if (b) check.shape(name, *b, {weight.sym_size(0)}, "one element per row of its weight");
  };
  bias("b1", b1, w1);
  bias("b2", b2, w2);
  bias("b3", b3, w3);
}

void SwigluFused::check() const {
  const Check check("swiglu");
  check.floating("x", x);
  check_shapes();
  const auto like_x = [&](const char* name, const at::Tensor& t) {
    check.same_dtype(name, t, x, "x");
    check.same_device(name, t, x, "x");
  };
  for (const auto& [name, weight] : {std::pair{"w1", &w1}, std::pair{"w2", &w2}, std::pair{"w3", &w3}}) {
    like_x(name, *weight);
  }
  if (b1.has_value() != b2.has_value()) {
    check.fail("b2", b2 ? "given without b1" : "None beside b1", "both or neither", "give both biases");
  }
  for (const auto& [name, bias] : {std::pair{"b1", &b1}, std::pair{"b2", &b2}, std::pair{"b3", &b3}}) {
    if (*bias) like_x(name, **bias);
  }
}

void SwigluPackedw::check_shapes() const {
  const Check check(kName);
  check.dims("w1w2", w1w2, 3, "[2, hidden, in]");
  check.shape("w1w2", w1w2, {2, w1w2.sym_size(1), w1w2.sym_size(2)}, "stack w1 and w2");
  if (b1b2) check.shape("b1b2", *b1b2, {2, w1w2.sym_size(1)}, "stack b1 and b2");
}

SwigluFused SwigluPackedw::unpacked() const {
  check_shapes();
  const auto bias = [&](int64_t which) { return b1b2 ? OptionalTensor(b1b2->select(0, which)) : std::nullopt; };
  return {x, w1w2.select(0, 0), bias(0), w1w2.select(0, 1), bias(1), w3, b3};
}

void SiluGate::check() const { check_gate(Check(kName), x1, {{"x2", x2}}); }
void SiluBwFused::check() const { check_gate(Check(kName), x1, {{"x2", x2}, {"dx4", dx4}}); }
void SiluGateBackward::check() const { check_gate(Check(kName), x1, {{"x2", x2}, {"dh", dh}}); }

void SiluGateBackwardOut::check() const {
  const Check check(kName);
  check_gate(check, x1, {{"x2", x2}, {"dh", dh}});
  check.contiguous("dh", dh);
  check.contiguous("dx1dx2", dx1dx2);
  check.shape("dx1dx2", dx1dx2, {x1.sym_size(0), 2, x1.sym_size(1)}, "it takes the gradients of x1 and x2");
  check.same_dtype("dx1dx2", dx1dx2, x1, "x1");
  check.same_device("dx1dx2", dx1dx2, x1, "x1");
}

at::Tensor swiglu(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                  const OptionalTensor& b2, const at::Tensor& w3, const OptionalTensor& b3) {
  return call(SwigluFused{x, w1, b1, w2, b2, w3, b3});
}

at::Tensor swiglu_packed(const at::Tensor& x, const at::Tensor& w1w2, const OptionalTensor& b1b2, const at::Tensor& w3,
                         const OptionalTensor& b3) {
  return call(SwigluPackedw{x, w1w2, b1b2, w3, b3});
}

at::Tensor silu_gate(const at::Tensor& x1, const at::Tensor& x2) { return call(SiluGate{x1, x2}); }

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<SwigluFused, SwigluPackedw, SwigluForward, SwigluBackward, SwigluBackwardInplace>(m);
  define<SiluGate, SiluBwFused, SiluGateBackward, SiluGateBackwardOut, DualGemm, OperandSum>(m);
}
