// The whole layer from matrix products and gates: the same on every device.
#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "xformers/ops/common/product.h"
#include "xformers/ops/common/stack.h"
#include "xformers/ops/swiglu/swiglu_op.h"

namespace xformers::ops {
namespace {

at::Tensor as_rows(const at::Tensor& x) { return x.dim() == 2 ? x : x.reshape_symint({-1, x.sym_size(-1)}); }

// cat({first, second}) without a copy, where the second lies right behind the first; else undefined.
at::Tensor stacked(const at::Tensor& first, const at::Tensor& second) {
  if (!is_eager(first) || !first.is_contiguous() || !second.is_contiguous() || !first.is_alias_of(second)) return {};
  if (second.storage_offset() != first.storage_offset() + first.numel()) return {};
  c10::DimVector sizes(first.sizes());
  sizes[0] *= 2;
  return first.as_strided(sizes, first.strides());
}

at::Tensor stacked_or_copied(const at::Tensor& first, const at::Tensor& second) {
  const at::Tensor view = stacked(first, second);
  return view.defined() ? view : at::cat({first, second});
}

// x1 and x2 as views of one tensor [rows, 2, hidden], computed by one product or by two.
at::Tensor both_products(const at::Tensor& x, const at::Tensor& w1, const OptionalTensor& b1, const at::Tensor& w2,
                         const OptionalTensor& b2) {
  const c10::SymInt rows = x.sym_size(0), hidden = w1.sym_size(0);
  // Of cuBLAS's products only those into contiguous results add a bias: copied weights cost less than a pass over x1x2.
  const bool copy = b1 && x.is_cuda();
  if (const at::Tensor w1w2 = copy ? stacked_or_copied(w1, w2) : stacked(w1, w2); w1w2.defined()) {
    const at::Tensor x1x2 = product(x, w1w2.t(), b1 ? OptionalTensor(stacked_or_copied(*b1, *b2)) : std::nullopt);
    return x1x2.view_symint({rows, 2, hidden});
  }
  at::Tensor x1x2 = at::empty_symint({rows, 2, hidden}, x.options());
  const auto into_half = [&](int64_t which, const at::Tensor& w, const OptionalTensor& b) {
    at::Tensor out = x1x2.select(1, which);
    b ? at::addmm_out(out, *b, x, w.t()) : at::mm_out(out, x, w.t());
  };
  into_half(0, w1, b1);
  into_half(1, w2, b2);
  return x1x2;
}

SwigluForward::Result forward(const SwigluForward& args) {
  args.check();
  const auto& [x, w1, b1, w2, b2, w3, b3] = static_cast<const SwigluFused&>(args);
  const at::Tensor x1x2 = both_products(as_rows(x), w1, b1, w2, b2);
  const at::Tensor h = call(SiluGate{x1x2.select(1, 0), x1x2.select(1, 1)});
  at::Tensor out = product(h, w3.t(), b3);
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = w3.sym_size(0);
  return {x.dim() == 2 ? out : out.view_symint(sizes), x1x2};
}

SwigluBackward::Result backward(const SwigluBackward& args, bool in_place) {
  const auto& [grad_out_arg, x_arg, x1x2, w1, w2, w3, need_dx, need_dw1w2, need_db1b2, need_dw3, need_db3] = args;
  SwigluFused{x_arg, w1, std::nullopt, w2, std::nullopt, w3}.check();
  const at::Tensor grad_out = as_rows(grad_out_arg), x = as_rows(x_arg);
  const c10::SymInt rows = x.sym_size(0), hidden = w1.sym_size(0);
  const auto nothing = [&] { return at::empty({0}, x.options()); };
  at::Tensor dx = nothing(), dw1w2 = nothing(), db1b2 = nothing(), dw3 = nothing(), db3 = nothing();
  if (need_db3) db3 = grad_out.sum(0);
  if (need_dx || need_dw1w2 || need_db1b2 || need_dw3) {
    at::Tensor h = product(grad_out, w3);  // dh, until the gate's gradients are known
    const at::Tensor dx1dx2 = in_place ? x1x2 : at::empty_symint(x1x2.sym_sizes(), x1x2.options());
    db1b2 = call(SiluGateBackwardOut{x1x2.select(1, 0), x1x2.select(1, 1), h, dx1dx2, need_dw3, need_db1b2});
    if (need_dw3) dw3 = product(grad_out.t(), h);
    h = at::Tensor();  // before the next products need memory
    const at::Tensor both = dx1dx2.view_symint({rows, 2 * hidden});
    if (need_dw1w2) dw1w2 = product(both.t(), x).view_symint({2, hidden, x.sym_size(1)});
    if (need_dx) {
      if (const at::Tensor w1w2 = stacked(w1, w2); w1w2.defined()) {
        dx = product(both, w1w2);
      } else {
        dx = at::addmm(at::mm(dx1dx2.select(1, 0), w1), dx1dx2.select(1, 1), w2);
      }
      dx = dx.view_symint(x_arg.sym_sizes());
    }
  }
  return {dx, dw1w2, db1b2, dw3, db3};
}

SwigluBackward::Result backward_apart(const SwigluBackward& args) { return backward(args, /*in_place=*/false); }
SwigluBackward::Result backward_inplace(const SwigluBackwardInplace& args) { return backward(args, /*in_place=*/true); }

at::Tensor fused(const SwigluFused& args) { return std::get<0>(call(SwigluForward{args})); }

at::Tensor packedw(const SwigluPackedw& args) { return std::get<0>(call(SwigluForward{args.unpacked()})); }

DualGemm::Result dual_gemm(const DualGemm& args) {
  at::Tensor x1 = at::linear(args.x, args.w1, args.b1), x2 = at::linear(args.x, args.w2, args.b2);
  at::Tensor x4 = call(SiluGate{x1, x2});
  return {x1, x2, x4};
}

void operand_sum(const OperandSum& args) {
  at::Tensor mm = args.out_mm, sum = args.out_sum;
  at::mm_out(mm, args.a, args.b);
  at::sum_out(sum, args.a, {1});
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<forward>(m);
  implement<backward_apart>(m);
  implement<backward_inplace>(m);
  implement<fused>(m);
  implement<packedw>(m);
  implement<dual_gemm>(m);
  implement<operand_sum>(m);
}
