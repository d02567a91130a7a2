#include "xformers/nn/functional/linformer.h"

#include <ATen/ops/mm.h>

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {
namespace {

// w [rows, longest] times t [batch, seqlen, heads, dim] along the sequence, one product for all: a product per batch
// element would make as many gradients of w.
at::Tensor along_the_sequence(const ops::Check& check, const char* name, const at::Tensor& w, const at::Tensor& t) {
  check.dims(name, w, 2, "[k, longest seqlen]");
  const c10::SymInt batch = t.sym_size(0), seqlen = t.sym_size(1), heads = t.sym_size(2), dim = t.sym_size(3);
  if (seqlen > w.sym_size(1)) {
    check.fail("seqlen", ops::describe_shape({seqlen}), "at most " + ops::describe_shape({w.sym_size(1)}),
               "build the projections for longer sequences");
  }
  const at::Tensor columns = t.transpose(0, 1).reshape_symint({seqlen, batch * heads * dim});
  return at::mm(w.narrow_symint(1, 0, seqlen), columns).view_symint({w.sym_size(0), batch, heads, dim}).transpose(0, 1);
}

}  // namespace

at::Tensor linformer_attention(const LinformerArgs& args) {
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  const at::Tensor k = along_the_sequence(check, "e", args.e, heads.k);
  const at::Tensor v = along_the_sequence(check, "f", args.f, heads.v);
  return heads.restore(drop(attend(heads.q, k, v, args.p), args.p));
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::LinformerArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::linformer_attention>(m);
}
