// Gradients of the block-sparse products, which are such products again, and of softmax from its result alone;
// autocast.
#include <ATen/ExpandUtils.h>

#include "xformers/ops/blocksparse/blocksparse.h"
#include "xformers/ops/blocksparse/blocksparse_op.h"
#include "xformers/ops/common/operator_node.h"

namespace xformers::ops {
namespace {

struct BlocksKept {
  at::Tensor row_offsets, column_indices;
  OptionalTensor row_offsets_t{}, column_indices_t{}, perm{};

  template <class Op>
  static BlocksKept of(const Op& op) {
    return {op.row_offsets, op.column_indices, op.row_offsets_t, op.column_indices_t, op.perm};
  }
  template <class K>
  static constexpr auto members_of() {
    return std::tuple{&K::row_offsets, &K::column_indices, &K::row_offsets_t, &K::column_indices_t, &K::perm};
  }

  at::Tensor sdd(const at::Tensor& a, const at::Tensor& b, const c10::SymInt& block) const {
    return call(BlockSdd{a, b, row_offsets, column_indices, block, row_offsets_t, column_indices_t, perm});
  }
  at::Tensor dsd(const at::Tensor& values, const at::Tensor& b, const c10::SymInt& m, bool transposed) const {
    return call(BlockDsd{values, b, row_offsets, column_indices, m, row_offsets_t, column_indices_t, perm, transposed});
  }
};

struct BlockSddKept : BlocksKept {
  static constexpr const char* kNode = "XformersBlockSddBackward";
  at::Tensor a, b;
  static constexpr auto members() {
    return std::tuple_cat(members_of<BlockSddKept>(), std::tuple{&BlockSddKept::a, &BlockSddKept::b});
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    return {wanted[0] ? dsd(grads[0], b.transpose(2, 3), a.sym_size(2), false) : at::Tensor(),
            wanted[1] ? dsd(grads[0], a, b.sym_size(3), true).transpose(2, 3) : at::Tensor()};
  }
};

at::Tensor sdd_autograd(const BlockSdd& args) {
  args.check();
  const auto node = record<BlockSddKept>(args.a, args.b);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({BlocksKept::of(args), args.a, args.b});
  return out;
}

struct BlockDsdKept : BlocksKept {
  static constexpr const char* kNode = "XformersBlockDsdBackward";
  at::Tensor values, b;
  bool transposed = false;
  static constexpr auto members() {
    using K = BlockDsdKept;
    return std::tuple_cat(members_of<K>(), std::tuple{&K::values, &K::b, &K::transposed});
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const at::Tensor& grad = grads[0];
    const at::Tensor &left = transposed ? b : grad, &right = transposed ? grad : b;
    return {wanted[0] ? sdd(left, right.transpose(2, 3), values.sym_size(2)) : at::Tensor(),
            wanted[1] ? dsd(values, grad, b.sym_size(2), !transposed) : at::Tensor()};
  }
};

at::Tensor dsd_autograd(const BlockDsd& args) {
  args.check();
  const auto node = record<BlockDsdKept>(args.values, args.b);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({BlocksKept::of(args), args.values, args.b, args.transposed});
  return out;
}

struct BlockSoftmaxKept {
  static constexpr const char* kNode = "XformersBlockSoftmaxBackward";
  at::Tensor out, row_offsets, column_indices;
  c10::SymInt heads = 0, n = 0;
  double scale = 1;
  std::vector<c10::SymInt> bias_sizes{};
  static constexpr auto members() {
    using K = BlockSoftmaxKept;
    return std::tuple{&K::out, &K::row_offsets, &K::column_indices, &K::heads, &K::n, &K::scale, &K::bias_sizes};
  }
  // The bias has the gradient of the scores behind their scale, summed where it was shared.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const auto scaled = [&](double by) {
      return call(BlockSoftmaxBackward{grads[0], out, row_offsets, column_indices, by});
    };
    at::Tensor dbias;
    if (wanted[1]) {
      dbias = at::sum_to(
          block_to_dense(scaled(1), {row_offsets, column_indices, {}, {}, {}}, heads.expect_int(), n.expect_int()),
          c10::SymIntArrayRef(bias_sizes));
    }
    return {wanted[0] ? scaled(scale) : at::Tensor(), dbias};
  }
};

at::Tensor block_softmax_autograd(const BlockSoftmax& args) {
  args.check();
  const auto node = record<BlockSoftmaxKept>(args.values, args.bias);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) {
    node->keep({out, args.row_offsets, args.column_indices, args.heads, args.n, args.scale,
                args.bias ? args.bias->sym_sizes().vec() : std::vector<c10::SymInt>()});
  }
  return out;
}

// Values keep their dtype, and dense operands take it; two dense ones of different dtypes meet in the wider.
void sdd_autocast(BlockSdd& args, const AutocastRegion&) {
  const at::ScalarType dtype = at::promote_types(args.a.scalar_type(), args.b.scalar_type());
  args.a = args.a.to(dtype);
  args.b = args.b.to(dtype);
}
void dsd_autocast(BlockDsd& args, const AutocastRegion&) {
  if (args.b.is_floating_point()) args.b = args.b.to(args.values.scalar_type());
}
void block_softmax_autocast(BlockSoftmax& args, const AutocastRegion&) {
  if (args.bias) args.bias = args.bias->to(args.values.scalar_type());
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<sdd_autograd>(m);
  implement<dsd_autograd>(m);
  implement<block_softmax_autograd>(m);
  implement_no_gradients<BlockSoftmaxBackward>(m);  // refuses double backward
}

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  implement_autocast<sdd_autocast>(m);
  implement_autocast<dsd_autocast>(m);
  implement_autocast<block_softmax_autocast>(m);
}
