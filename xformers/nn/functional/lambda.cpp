#include "xformers/nn/functional/lambda.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>

#include "xformers/nn/functional/attend.h"
#include "xformers/nn/functional/toeplitz.h"

namespace xformers::nn::functional {
namespace {

// sum over i < seqlen of E[i, n] for every n: [seqlen, head_dim]. A difference of two prefix sums, in fp32.
at::Tensor column_sums(const at::Tensor& rel_pos_emb, const c10::SymInt& longest, const c10::SymInt& seqlen) {
  const at::Tensor rows = rel_pos_emb.to(ops::compute_dtype(rel_pos_emb));
  const at::Tensor sums = at::cat({at::zeros_symint({1, rows.sym_size(1)}, rows.options()), rows.cumsum(0)});
  return sums.narrow_symint(0, longest, seqlen) - sums.narrow_symint(0, longest - seqlen, seqlen);
}

}  // namespace

at::Tensor lambda_layer(const LambdaArgs& args) {
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  check.dims("rel_pos_emb", args.rel_pos_emb, 2, "[2 * longest - 1, head_dim]");
  check.equal("rel_pos_emb.head_dim", args.rel_pos_emb.sym_size(1), heads.q.sym_size(3),
              "it has the queries' head_dim");
  check.equal("k.seqlen", heads.k.sym_size(1), heads.q.sym_size(1), "every token has a query, a key and a value");
  const c10::SymInt seqlen = heads.q.sym_size(1), longest = (args.rel_pos_emb.sym_size(0) + 1) / 2;
  if (seqlen > longest) {
    check.fail("seqlen", ops::describe_shape({seqlen}), "at most " + ops::describe_shape({longest}),
               "build the layer with a longer seq_len");
  }
  const auto by_head = [](const at::Tensor& t) { return t.transpose(1, 2); };  // [batch, heads, seqlen, dim]
  const at::Tensor content = at::matmul(at::softmax(by_head(heads.k), -1).transpose(-1, -2), by_head(heads.v));
  const at::Tensor mixed = by_head(at::matmul(by_head(heads.q), content));
  if (args.paper_position) {
    return heads.restore(mixed + toeplitz_product({heads.q, heads.v.to(heads.q.scalar_type()),
                                                   args.rel_pos_emb.to(heads.q.scalar_type())}));
  }
  const at::Tensor sums = column_sums(args.rel_pos_emb, longest, seqlen).to(heads.q.scalar_type());
  // No product of matrices: that would copy the sums for every batch element and head, and keep the copy.
  const at::Tensor weights = at::mul(heads.q, sums.unsqueeze(1)).sum({-1}, /*keepdim=*/true);
  return heads.restore(mixed.addcmul(weights.to(mixed.scalar_type()), heads.v.to(mixed.scalar_type())));
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::LambdaArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::lambda_layer>(m);
}
