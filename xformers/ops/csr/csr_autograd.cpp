// Gradients of the products, which are such products again, and of softmax from its result alone; autocast.
#include <ATen/ExpandUtils.h>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/csr/csr_op.h"

namespace xformers::ops {
namespace {

struct CsrKept {
  at::Tensor row_indices, row_offsets, column_indices;
  OptionalTensor row_offsets_t{}, column_indices_t{}, perm{};

  template <class Op>
  static CsrKept of(const Op& op) {
    return {op.row_indices, op.row_offsets, op.column_indices, op.row_offsets_t, op.column_indices_t, op.perm};
  }
  template <class K>
  static constexpr auto members_of() {
    return std::tuple{&K::row_indices,   &K::row_offsets,      &K::column_indices,
                      &K::row_offsets_t, &K::column_indices_t, &K::perm};
  }

  at::Tensor sddmm(const at::Tensor& a, const at::Tensor& b) const {
    return call(CsrSddmm{a, b, row_indices, row_offsets, column_indices, row_offsets_t, column_indices_t, perm});
  }
  at::Tensor spmm(const at::Tensor& values, const at::Tensor& b, const c10::SymInt& rows, bool transposed) const {
    return call(CsrSpmm{b, row_indices, values, row_offsets, column_indices, rows, row_offsets_t, column_indices_t,
                        perm, transposed});
  }
};

// t summed over the batch where its tensor served all of it.
at::Tensor sum_to_batch(const at::Tensor& t, const at::Tensor& like) { return at::sum_to(t, like.sym_sizes()); }

struct CsrSddmmKept : CsrKept {
  static constexpr const char* kNode = "XformersSddmmBackward";
  at::Tensor a, b;
  static constexpr auto members() {
    return std::tuple_cat(members_of<CsrSddmmKept>(), std::tuple{&CsrSddmmKept::a, &CsrSddmmKept::b});
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    return {wanted[0] ? spmm(grads[0], b, a.sym_size(1), false) : at::Tensor(),
            wanted[1] ? spmm(grads[0], a, b.sym_size(1), true) : at::Tensor()};
  }
};

at::Tensor sddmm_autograd(const CsrSddmm& args) {
  args.check();  // below, a mix of devices would already have one kernel chosen
  const auto node = record<CsrSddmmKept>(args.a, args.b);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({CsrKept::of(args), args.a, args.b});
  return out;
}

struct CsrSpmmKept : CsrKept {
  static constexpr const char* kNode = "XformersSpmmBackward";
  at::Tensor values, b;
  bool transposed = false;
  static constexpr auto members() {
    using K = CsrSpmmKept;
    return std::tuple_cat(members_of<K>(), std::tuple{&K::values, &K::b, &K::transposed});
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    const at::Tensor& grad = grads[0];
    variable_list result(2);
    if (wanted[0]) {
      const at::Tensor every_b = b.expand_symint({grad.sym_size(0), b.sym_size(1), b.sym_size(2)});
      result[0] = sum_to_batch(transposed ? sddmm(every_b, grad) : sddmm(grad, every_b), values);
    }
    if (wanted[1]) result[1] = sum_to_batch(spmm(values, grad, b.sym_size(1), !transposed), b);
    return result;
  }
};

at::Tensor spmm_autograd(const CsrSpmm& args) {
  args.check();
  const auto node = record<CsrSpmmKept>(args.values, args.b);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({CsrKept::of(args), args.values, args.b, args.transposed});
  return out;
}

struct CsrSoftmaxKept {
  static constexpr const char* kNode = "XformersSparseSoftmaxBackward";
  at::Tensor row_indices, row_offsets, column_indices, out;
  c10::SymInt m = 0, n = 0;
  static constexpr auto members() {
    using K = CsrSoftmaxKept;
    return std::tuple{&K::row_indices, &K::row_offsets, &K::column_indices, &K::out, &K::m, &K::n};
  }
  variable_list gradients(const variable_list& grads, const Wanted&) const {
    return {call(CsrSoftmaxBackward{m, n, row_indices, out, grads[0], row_offsets, column_indices})};
  }
};

at::Tensor softmax_autograd(const CsrSoftmax& args) {
  args.check();
  const auto node = record<CsrSoftmaxKept>(args.values);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args.row_indices, args.row_offsets, args.column_indices, out, args.m, args.n});
  return out;
}

// Values keep their dtype, and dense operands take it: sums are fp32 anyway. Two dense ones of different dtypes meet in
// the wider.
void sddmm_autocast(CsrSddmm& args, const AutocastRegion&) {
  const at::ScalarType dtype = at::promote_types(args.a.scalar_type(), args.b.scalar_type());
  args.a = args.a.to(dtype);
  args.b = args.b.to(dtype);
}
void spmm_autocast(CsrSpmm& args, const AutocastRegion&) {
  if (args.b.is_floating_point()) args.b = args.b.to(args.values.scalar_type());
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<sddmm_autograd>(m);
  implement<spmm_autograd>(m);
  implement<softmax_autograd>(m);
  implement_no_gradients<CsrSoftmaxBackward>(m);  // refuses double backward
}

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  implement_autocast<sddmm_autocast>(m);
  implement_autocast<spmm_autocast>(m);
}
