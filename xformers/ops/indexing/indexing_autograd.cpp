// Gradients of the indexing operators.
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/indexing/indexing_op.h"

namespace xformers::ops {
namespace {

struct IndexSelectCatKept {
  static constexpr const char* kNode = "XformersIndexSelectCatBackward";
  std::vector<at::Tensor> indices{};
  std::vector<c10::SymInt> rows{}, widths{};
  static constexpr auto members() {
    using K = IndexSelectCatKept;
    return std::tuple{&K::indices, &K::rows, &K::widths};
  }

  variable_list gradients(const variable_list& grads, const Wanted&) const {
    return call(IndexSelectCatBackward{grads[0], indices, rows, widths});
  }
};

at::Tensor index_select_cat_autograd(const IndexSelectCat& args) {
  args.check();  // below, a mix of devices would already have one kernel chosen
  const auto node = record<IndexSelectCatKept>(args.sources);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) {
    IndexSelectCatKept kept{.indices = args.indices.vec()};
    for (const at::Tensor& source : args.sources) {
      kept.rows.push_back(source.sym_size(0));
      kept.widths.push_back(source.sym_size(1));
    }
    node->keep(std::move(kept));
  }
  return out;
}

struct ScaledIndexAddKept {
  static constexpr const char* kNode = "XformersScaledIndexAddBackward";
  at::Tensor index;
  OptionalTensor source{};  // where scaling needs its gradient
  OptionalTensor scaling{};
  double alpha = 1;
  static constexpr auto members() {
    using K = ScaledIndexAddKept;
    return std::tuple{&K::index, &K::source, &K::scaling, &K::alpha};
  }

  // Of input, source and scaling.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    if (!wanted[1] && !wanted[2]) return {grads[0], at::Tensor(), at::Tensor()};
    // Without a gradient of scaling only the shape of the source matters, which is that of its gradient.
    const at::Tensor shape_of_source = source ? *source
                                              : grads[0].new_empty_symint({1}).expand_symint(
                                                    {index.sym_size(0), grads[0].sym_size(1), grads[0].sym_size(2)});
    const auto [dsource, dscaling] =
        call(ScaledIndexAddBackward{grads[0], index, shape_of_source, scaling, alpha, wanted[1], wanted[2]});
    variable_list result = wanted.only(at::Tensor(), dsource, dscaling);
    result[0] = grads[0];
    return result;
  }
};

void scaled_index_add_autograd(const ScaledIndexAdd& args) {
  args.check();
  const auto node = record<ScaledIndexAddKept>(args.input, args.source, args.scaling);
  check_inplace(args.input, node != nullptr);
  below_autograd(args);
  if (node) {
    const bool scaling_needs_grad = args.scaling && args.scaling->requires_grad();
    node->keep({args.index, scaling_needs_grad ? OptionalTensor(args.source) : std::nullopt, args.scaling, args.alpha});
  }
  written_inplace(args.input, node);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<index_select_cat_autograd>(m);
  implement<scaled_index_add_autograd>(m);
  implement_no_gradients<IndexSelectCatBackward, ScaledIndexAddBackward>(m);  // refuse double backward
}
