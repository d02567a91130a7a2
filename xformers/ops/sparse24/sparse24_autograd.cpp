// The layers' gradients, and autocast. The operators that pack and multiply have no gradients of their own: layers and
// the tensor class of Python do.
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include "xformers/ops/common/expanded.h"
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/sparse24/sparse24_op.h"

namespace xformers::ops {
namespace {

at::Tensor as_matrix(const at::Tensor& x) { return x.dim() == 2 ? x : x.reshape_symint({-1, x.sym_size(-1)}); }

std::string_view layout_name(bool square) { return square ? "cusparselt" : "cutlass"; }

// ---- a sparse weight ----
struct Sparse24LinearKept {
  static constexpr const char* kNode = "XformersSparse24LinearBackward";
  at::Tensor x, packed_t, meta_t, masks;  // [rows, in]; of the weight [out, in]
  c10::SymInt in = 0, out = 0;
  std::vector<c10::SymInt> x_sizes{};
  bool square = false, straight_through = false;
  static constexpr auto members() {
    using K = Sparse24LinearKept;
    return std::tuple{&K::x,   &K::packed_t, &K::meta_t, &K::masks,           &K::in,
                      &K::out, &K::x_sizes,  &K::square, &K::straight_through};
  }

  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const at::Tensor grad = as_matrix(grads[0]);
    at::Tensor dx, dweight, dbias;
    if (wanted[0]) {
      dx = call(Sparse24Product{.packed = packed_t,
                                .meta = meta_t,
                                .b = grad.t(),
                                .rows = in,
                                .cols = out,
                                .transpose_result = true,
                                .backend = layout_name(square)})
               .view_symint(x_sizes);
    }
    if (wanted[1]) {
      dweight = grad.t().mm(x);
      if (!straight_through) dweight = call(Sparse24ApplyDenseOutput{dweight, masks});
    }
    if (wanted[2]) dbias = grad.sum(0);
    return {dx, dweight, dbias};
  }
};

// The two steps of the layer: below autograd, so that both see plain tensors.
at::Tensor multiply_by_packed(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& meta,
                              const Sparse24Linear& args) {
  const at::Tensor y = call(Sparse24Product{.packed = packed,
                                            .meta = meta,
                                            .b = x.t(),
                                            .rows = args.weight.sym_size(0),
                                            .cols = args.weight.sym_size(1),
                                            .bias = args.bias,
                                            .transpose_result = true,
                                            .backend = args.backend});
  std::vector<c10::SymInt> sizes = args.x.sym_sizes().vec();
  sizes.back() = args.weight.sym_size(0);
  return y.view_symint(sizes);
}

at::Tensor sparse24_linear_plain(const Sparse24Linear& args) {
  args.check();
  const at::Tensor weight = with_unit_last_stride(args.weight);
  const auto [packed, meta] = call(Sparse24Sparsify{weight, args.algorithm, args.backend});
  return multiply_by_packed(as_matrix(args.x), packed, meta, args);
}

at::Tensor sparse24_linear_autograd(const Sparse24Linear& args) {
  args.check();
  const auto node = record<Sparse24LinearKept>(args.x, args.weight, args.bias);
  if (!node) return below_autograd(args);
  const at::Tensor x = as_matrix(args.x.detach());
  at::Tensor y, packed_t, meta_t, masks;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const at::Tensor weight = with_unit_last_stride(args.weight);
    auto parts = call(Sparse24SparsifyBothWays{weight, args.algorithm, args.backend});
    y = multiply_by_packed(x, std::get<0>(parts), std::get<1>(parts), args);
    packed_t = std::get<2>(parts), meta_t = std::get<3>(parts), masks = std::get<4>(parts);
  }
  const at::Tensor result = with_history(y, node);
  node->keep({.x = x,
              .packed_t = packed_t,
              .meta_t = meta_t,
              .masks = masks,
              .in = args.weight.sym_size(1),
              .out = args.weight.sym_size(0),
              .x_sizes = args.x.sym_sizes().vec(),
              .square = args.backend == "cusparselt",
              .straight_through = args.gradient == "ste"});
  return result;
}

// ---- sparse activations ----
constexpr std::string_view kActivations[] = {"relu", "squared_relu", "gelu", "gelu_exact"};

struct Sparse24ActivatedLinearKept {
  static constexpr const char* kNode = "XformersSparse24ActivatedLinearBackward";
  at::Tensor z, weight, packed_t, meta_t, masks;  // [rows, hidden]; [out, hidden]; of the activations
  std::vector<c10::SymInt> z_sizes{};
  int64_t activation = 0;
  static constexpr auto members() {
    using K = Sparse24ActivatedLinearKept;
    return std::tuple{&K::z, &K::weight, &K::packed_t, &K::meta_t, &K::masks, &K::z_sizes, &K::activation};
  }

  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const at::Tensor grad = as_matrix(grads[0]);
    at::Tensor dz, dweight, dbias;
    if (wanted[0]) {
      const at::Tensor da = grad.mm(weight);
      dz = std::get<0>(call(Sparse24ActivationBackward{
                           .grad_out = da, .x = z, .threads_masks = masks, .activation = kActivations[activation]}))
               .view_symint(z_sizes);
    }
    if (wanted[1]) {
      dweight = call(Sparse24Product{.packed = packed_t,
                                     .meta = meta_t,
                                     .b = grad,
                                     .rows = z.sym_size(1),
                                     .cols = z.sym_size(0),
                                     .transpose_result = true});
    }
    if (wanted[2]) dbias = grad.sum(0);
    return {dz, dweight, dbias};
  }
};

struct ActivatedProduct {
  at::Tensor y, packed_t, meta_t, masks;
};
ActivatedProduct multiply_activated(const at::Tensor& z, const Sparse24ActivatedLinear& args) {
  const auto [packed, meta, packed_t, meta_t, masks] =
      call(Sparse24Activation{.x = z, .activation = args.activation, .algorithm = args.algorithm});
  const at::Tensor y = call(Sparse24Product{.packed = packed,
                                            .meta = meta,
                                            .b = args.weight.t(),
                                            .rows = z.sym_size(0),
                                            .cols = z.sym_size(1),
                                            .bias = args.bias,
                                            .bias_per_row = false});
  std::vector<c10::SymInt> sizes = args.z.sym_sizes().vec();
  sizes.back() = args.weight.sym_size(0);
  return {y.view_symint(sizes), packed_t, meta_t, masks};
}

at::Tensor activated_linear_plain(const Sparse24ActivatedLinear& args) {
  args.check();
  return multiply_activated(with_unit_last_stride(as_matrix(args.z)), args).y;
}

at::Tensor activated_linear_autograd(const Sparse24ActivatedLinear& args) {
  args.check();
  const auto node = record<Sparse24ActivatedLinearKept>(args.z, args.weight, args.bias);
  if (!node) return below_autograd(args);
  const at::Tensor z = with_unit_last_stride(as_matrix(args.z.detach()));
  ActivatedProduct product;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    product = multiply_activated(z, args);
  }
  const at::Tensor result = with_history(product.y, node);
  int64_t activation = 0;
  while (kActivations[activation] != args.activation) ++activation;
  node->keep({.z = z,
              .weight = args.weight.detach(),
              .packed_t = product.packed_t,
              .meta_t = product.meta_t,
              .masks = product.masks,
              .z_sizes = args.z.sym_sizes().vec(),
              .activation = activation});
  return result;
}

// ---- autocast ----
template <class Op>
void cast_input(Op& args, const AutocastRegion& region) {
  region(args.input);
}
void cast_activation(Sparse24Activation& args, const AutocastRegion& region) {
  region(args.x);
  region(args.x2);
}
void cast_linear(Sparse24Linear& args, const AutocastRegion& region) {
  region(args.x);
  region(args.weight);
  region(args.bias);
}
void cast_activated_linear(Sparse24ActivatedLinear& args, const AutocastRegion& region) {
  region(args.z);
  region(args.weight);
  region(args.bias);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<sparse24_linear_plain>(m);
  implement<activated_linear_plain>(m);
}

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<sparse24_linear_autograd>(m);
  implement<activated_linear_autograd>(m);
  implement_no_gradients<Sparse24SparsifyBothWays, Sparse24Sparsify, Sparse24Apply, Sparse24ApplyDenseOutput,
                         Sparse24Unpack, Sparse24Activation, Sparse24ActivationBackward, Sparse24Product, Sparse24Gemm,
                         Sparse24LargestMask2d, Sparse24LargestWithKrandomMask2d, Sparse24PackMask, Sparse24ReorderMeta,
                         Sparse24PackTensorAccordingToMask>(m);
}

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  implement_autocast<cast_input<Sparse24SparsifyBothWays>>(m);
  implement_autocast<cast_input<Sparse24Sparsify>>(m);
  implement_autocast<cast_input<Sparse24Apply>>(m);
  implement_autocast<cast_input<Sparse24ApplyDenseOutput>>(m);
  implement_autocast<cast_activation>(m);
  implement_autocast<cast_linear>(m);
  implement_autocast<cast_activated_linear>(m);
}
