// Gradients of the normalisations, and autocast. Kept for backward: x and weight.
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/norm/norm_op.h"

namespace xformers::ops {
namespace {

struct RmsNormKept : RmsNorm {
  static constexpr const char* kNode = "XformersRmsNormBackward";
  static constexpr auto members() { return members_of<RmsNorm>(); }

  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const auto [dx, dweight] = call(RmsNormBackward{{grads[0], x, weight, eps, wanted[0], wanted[1]}});
    return wanted.only(dx, dweight);
  }
};

at::Tensor rms_norm_autograd(const RmsNorm& args) {
  args.check();
  const auto node = record<RmsNormKept>(args.x, args.weight);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args});
  return out;
}

struct SumKept {
  static constexpr const char* kNode = "XformersRmsNormAddBackward";
  static constexpr auto members() { return std::tuple<>(); }

  variable_list gradients(const variable_list& grads, const Wanted&) const { return {grads[0], grads[0]}; }
};

// Two nodes: the sum, which is what x then is, and its norm.
at::Tensor rms_norm_add_autograd(const RmsNormAdd& args) {
  args.check();
  const auto sum = record<SumKept>(args.x, args.y);
  check_inplace(args.x, sum != nullptr);
  at::Tensor out = below_autograd(args);
  written_inplace(args.x, sum);
  const auto node = record<RmsNormKept>(args.x, args.weight);
  out = with_history(std::move(out), node);
  if (node) node->keep({{args.x, args.weight, args.eps}});
  return out;
}

struct LayerNormKept {
  static constexpr const char* kNode = "XformersLayerNormBackward";
  at::Tensor x;
  OptionalTensor weight{};
  double eps = 0;
  static constexpr auto members() { return std::tuple{&LayerNormKept::x, &LayerNormKept::weight, &LayerNormKept::eps}; }

  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const auto [dx, dweight, dbias] =
        call(LayerNormBackward{{grads[0], x, weight, eps, wanted[0], wanted[1]}, wanted[2]});
    return wanted.only(dx, dweight, dbias);
  }
};

at::Tensor layer_norm_autograd(const LayerNorm& args) {
  args.check();
  const auto node = record<LayerNormKept>(args.x, args.weight, args.bias);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args.x, args.weight, args.eps});
  return out;
}

struct ScaledSumKept {
  static constexpr const char* kNode = "XformersLayerNormOfSumBackward";
  double scale = 1;
  static constexpr auto members() { return std::tuple{&ScaledSumKept::scale}; }

  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    return {grads[0], wanted[1] && scale != 1 ? grads[0] * scale : grads[0]};
  }
};

// Two nodes, of the sum and of its norm.
LayerNormOfSum::Result layer_norm_of_sum_autograd(const LayerNormOfSum& args) {
  args.check();
  const auto sum_node = record<ScaledSumKept>(args.x, args.residual);
  auto [out, sum] = below_autograd(args);
  sum = with_history(std::move(sum), sum_node);
  if (sum_node) sum_node->keep({args.scale});
  const auto node = record<LayerNormKept>(sum, args.weight, args.bias);
  out = with_history(std::move(out), node);
  if (node) node->keep({sum, args.weight, args.eps});
  return {out, sum};
}

// In fp32, like LibTorch's.
void layer_norm_of_sum_autocast(LayerNormOfSum& args, const AutocastRegion& region) {
  for (at::Tensor* t : {&args.x, &args.residual}) *t = region.cast(*t, at::kFloat);
}
void layer_norm_autocast(LayerNorm& args, const AutocastRegion& region) { args.x = region.cast(args.x, at::kFloat); }

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<rms_norm_autograd>(m);
  implement<rms_norm_add_autograd>(m);
  implement<layer_norm_autograd>(m);
  implement<layer_norm_of_sum_autograd>(m);
  implement_no_gradients<RmsNormBackward, LayerNormBackward>(m);  // refuses double backward
}

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  implement_autocast<layer_norm_autocast>(m);
  implement_autocast<layer_norm_of_sum_autocast>(m);
}
