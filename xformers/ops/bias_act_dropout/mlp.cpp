// The feed-forward layer from matrix products and the fused element-wise pass: the same on every device.
#include "xformers/ops/bias_act_dropout/mlp.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/sum.h>

#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"
#include "xformers/ops/bias_act_dropout/mlp_op.h"
#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/common/product.h"
#include "xformers/ops/common/random.h"

namespace xformers::ops {

void MlpInner::check() const {
  const Check check("mlp");
  check.floating("x", x);
  if (x.dim() < 1) check.fail("x", describe(x), "at least one dimension", "pass [..., dim]");
  check.dims("w1", w1, 2, "[hidden, in]");
  check.dims("w2", w2, 2, "[out, hidden]");
  check.shape("w1", w1, {w1.sym_size(0), x.sym_size(-1)}, "one column per element of x's last dimension");
  check.shape("w2", w2, {w2.sym_size(0), w1.sym_size(0)}, "one column per row of w1");
  if (b1) check.shape("b1", *b1, {w1.sym_size(0)}, "one element per row of w1");
  if (b2) check.shape("b2", *b2, {w2.sym_size(0)}, "one element per row of w2");
  for (const auto& [name, w] : {std::pair{"w1", &w1}, std::pair{"w2", &w2}}) {
    check.same_dtype(name, *w, x, "x");
    check.same_device(name, *w, x, "x");
  }
  to_activation("mlp", activation);
  check_dropout(check, p, philox_state, x, "x");
}

namespace {

at::Tensor rows_of(const at::Tensor& x) { return x.dim() == 2 ? x : x.reshape_symint({-1, x.sym_size(-1)}); }

OptionalTensor in_dtype_of(const OptionalTensor& t, const at::Tensor& x) {
  return t ? OptionalTensor(t->to(x.scalar_type())) : std::nullopt;
}

MlpForward::Result mlp_forward(const MlpForward& args) {
  args.check();
  const auto& [x, w1, b1, w2, b2, activation, p, philox_state] = static_cast<const MlpInner&>(args);
  const at::Tensor z = product(rows_of(x), w1.t());
  const at::Tensor h = call(BiasActDropout{z, b1, std::nullopt, activation, p, philox_state});
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = w2.sym_size(0);
  const at::Tensor out = product(h, w2.t(), in_dtype_of(b2, x));
  return {x.dim() == 2 ? out : out.view_symint(sizes), z};
}

at::Tensor mlp_inner(const MlpInner& args) { return std::get<0>(call(MlpForward{args})); }

// At most two tensors of the hidden width beside each other: z and dropout(activation(z + b1)), then z and its
// gradient.
MlpBackward::Result mlp_backward(const MlpBackward& args) {
  const at::Tensor grad_out = rows_of(args.grad_out), x = rows_of(args.x);
  const auto nothing = [&] { return at::empty({0}, x.options()); };
  at::Tensor dx = nothing(), dw1 = nothing(), db1 = nothing(), dw2 = nothing(), db2 = nothing();
  if (args.need_db2) db2 = grad_out.sum(0);
  if (args.need_dw2) {
    const at::Tensor h =
        call(BiasActDropout{args.z, args.b1, std::nullopt, args.activation, args.p, args.philox_state});
    dw2 = product(grad_out.t(), h);
  }
  if (args.need_dx || args.need_dw1 || args.need_db1) {
    at::Tensor dz = product(grad_out, args.w2);  // that of h, first
    const at::Tensor sums = call(BiasActDropoutBackwardInplace{
        {dz, args.z, args.b1, args.activation, args.p, args.philox_state, true, args.need_db1}});
    if (args.need_db1) db1 = sums;
    if (args.need_dw1) dw1 = product(dz.t(), x);
    if (args.need_dx) dx = product(dz, args.w1).view_symint(args.x.sym_sizes());
  }
  return {dx, dw1, db1, dw2, db2};
}

struct MlpKept {
  static constexpr const char* kNode = "XformersMlpBackward";
  at::Tensor x, w1, w2, z;
  OptionalTensor b1{}, philox_state{};
  int64_t activation = 0;
  double p = 0;
  static constexpr auto members() {
    using K = MlpKept;
    return std::tuple{&K::x, &K::w1, &K::w2, &K::z, &K::b1, &K::philox_state, &K::activation, &K::p};
  }

  // Of x, w1, b1, w2, b2.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const auto [dx, dw1, db1, dw2, db2] =
        call(MlpBackward{grads[0], x, z, w1, b1, w2, name_of(static_cast<Activation>(activation)), p, philox_state,
                         wanted[0], wanted[1], wanted[2], wanted[3], wanted[4]});
    return wanted.only(dx, dw1, db1, dw2, db2);
  }
};

at::Tensor mlp_autograd(const MlpInner& args) {
  args.check();
  const auto& [x, w1, b1, w2, b2, activation, p, philox_state] = args;
  const auto node = record<MlpKept>(x, w1, b1, w2, b2);
  if (!node) return below_autograd(args);
  auto [out, z] = below_autograd(MlpForward{args});
  node->keep({x, w1, w2, z, b1, philox_state, static_cast<int64_t>(to_activation("mlp", activation)), p});
  return with_history(std::move(out), node);
}

// Biases count in full: the first is added in fp32 anyway.
void mlp_autocast(MlpInner& args, const AutocastRegion& region) {
  for (at::Tensor* t : {&args.x, &args.w1, &args.w2}) region(*t);
}

at::Tensor mlp_by_name(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                       const OptionalTensor& b2, ActivationName activation, double p) {
  return mlp(x, w1, b1, w2, b2, to_activation("mlp", activation), p);
}

}  // namespace

at::Tensor mlp(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
               const OptionalTensor& b2, Activation activation, double p) {
  check_probability(Check("mlp"), p);
  if (activation == Activation::kGeluExact && !x.is_cpu()) {  // the CPU's kernels alone have it
    const at::Tensor h = elementwise_dropout(at::linear(x, w1), p, b1, Activation::kGelu);
    return fused_dropout(at::linear(h, w2), p, b2);
  }
  const bool last_bias_apart = p > 0;  // beside dropout it costs nothing
  const at::Tensor out = call(MlpInner{x, w1, b1, w2, last_bias_apart ? std::nullopt : b2, name_of(activation), p,
                                       draw_dropout_state(p, x.device())});
  return last_bias_apart ? fused_dropout(out, p, b2) : out;
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<MlpInner, MlpForward, MlpBackward>(m);
  m.def("mlp(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2=None, str? activation=None, float p=0.0) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  implement_autocast<mlp_autocast>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<mlp_inner>(m);
  implement<mlp_forward>(m);
  implement<mlp_backward>(m);
}
TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<mlp_autograd>(m);
  implement_no_gradients<MlpForward, MlpBackward>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) { m.impl("mlp", xformers::ops::mlp_by_name); }
TORCH_LIBRARY_IMPL(xformers, FuncTorchVmapMode, m) { m.impl("mlp", xformers::ops::mlp_by_name); }
