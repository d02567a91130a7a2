#include "xformers/nn/functional/attend.h"

#include <ATen/ops/dropout.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "xformers/ops/attention/attention.h"
#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/common/random.h"

namespace xformers::nn::functional {
namespace {

at::Tensor with_heads(const at::Tensor& t) { return t.dim() == 3 ? t.unsqueeze(2) : t; }

// [n, ...] over batch * heads: [batch, heads or 1, ...]
at::Tensor split_folded(const ops::Check& check, const char* name, const at::Tensor& t, const Heads& heads) {
  const c10::SymInt batch = heads.q.sym_size(0), num_heads = heads.q.sym_size(2), n = t.sym_size(0);
  if (n == batch || n == 1) return t.unsqueeze(1);
  if (n == batch * num_heads) {
    c10::SymDimVector sizes{batch, num_heads};
    for (int64_t dim = 1; dim < t.dim(); ++dim) sizes.push_back(t.sym_size(dim));
    return t.reshape_symint(sizes);
  }
  check.fail(name, ops::describe(t), "a first dimension of 1, batch or batch * heads",
             "there is one mask, or one per batch element, or one per batch element and head");
}

at::Tensor additive(const at::Tensor& mask, at::ScalarType dtype) {
  if (mask.scalar_type() != at::kBool) return mask.to(dtype);
  const at::Tensor zero = at::zeros({}, mask.options().dtype(dtype));
  return at::where(mask, zero, at::full({}, -std::numeric_limits<double>::infinity(), zero.options()));
}

at::Tensor attention_mask_of_heads(const ops::Check& check, const at::Tensor& att_mask, const Heads& heads) {
  const c10::SymInt nq = heads.q.sym_size(1), nk = heads.k.sym_size(1);
  at::Tensor mask = att_mask;
  if (mask.dim() < 2 || mask.dim() > 4) {
    check.fail("att_mask", ops::describe(mask), "[seqlen_q, seqlen_k], or with a first dimension, or two, of the batch",
               "give it 2 to 4 dimensions");
  }
  if (mask.device() != heads.q.device()) check.same_device("att_mask", mask, heads.q, "q");
  // Made for longer sequences: its first rows and columns.
  if (nq == nk && mask.sym_size(-1) > nk && mask.sym_size(-2) > nq) {
    mask = mask.narrow_symint(-2, 0, nq).narrow_symint(-1, 0, nk);
  }
  if ((mask.sym_size(-2) != nq && mask.sym_size(-2) != 1) || (mask.sym_size(-1) != nk && mask.sym_size(-1) != 1)) {
    check.fail("att_mask", ops::describe(mask),
               "last dimensions of " + ops::describe_shape({nq, nk}) + ", seqlen_q and seqlen_k",
               "make it for these sequences");
  }
  if (mask.dim() == 2) return mask.unsqueeze(0).unsqueeze(0);
  return mask.dim() == 3 ? split_folded(check, "att_mask", mask, heads) : mask;
}

// Folded heads under one mask per batch element: the mask is not repeated, the heads are unfolded.
Heads unfolded(const Heads& heads, const c10::SymInt& batch) {
  const auto unfold = [&](const at::Tensor& t) {
    return t.view_symint({batch, t.sym_size(0) / batch, t.sym_size(1), t.sym_size(3)}).transpose(1, 2);
  };
  Heads result = heads;
  result.q = unfold(heads.q.contiguous());
  result.k = unfold(heads.k.contiguous());
  result.v = unfold(heads.v.contiguous());
  return result;
}

}  // namespace

Heads::Heads(const ops::Check& check, const at::Tensor& q_arg, const at::Tensor& k_arg, const at::Tensor& v_arg)
    : q(with_heads(q_arg)), k(with_heads(k_arg)), v(with_heads(v_arg)), folded(q_arg.dim() == 3) {
  if (q_arg.dim() != 3 && q_arg.dim() != 4) {
    check.fail("q", ops::describe(q_arg), "[batch * heads, seqlen, head_dim] or [batch, seqlen, heads, head_dim]",
               "give it 3 or 4 dimensions");
  }
  for (const auto& [name, t] : {std::pair{"k", &k_arg}, std::pair{"v", &v_arg}}) {
    if (t->dim() != q_arg.dim())
      check.fail(name, ops::describe(*t), "as many dimensions as q", "shape all three alike");
    check.same_device(name, *t, q_arg, "q");
  }
  check.equal("k.batch", k.sym_size(0), q.sym_size(0), "queries, keys and values are those of the same batch");
  check.equal("v.batch", v.sym_size(0), q.sym_size(0), "queries, keys and values are those of the same batch");
  check.equal("k.heads", k.sym_size(2), q.sym_size(2), "expand keys that heads share");
  check.equal("v.heads", v.sym_size(2), q.sym_size(2), "expand values that heads share");
  check.equal("k.head_dim", k.sym_size(3), q.sym_size(3), "only values may have their own head_dim");
  check.equal("v.seqlen", v.sym_size(1), k.sym_size(1), "every key has one value");
}

at::Tensor Heads::restore(const at::Tensor& out) const {
  if (!folded) return out;
  if (out.sym_size(2) == 1) return out.squeeze(2);
  return out.transpose(1, 2).reshape_symint({out.sym_size(0) * out.sym_size(2), out.sym_size(1), out.sym_size(3)});
}

at::Tensor padding_of_heads(const ops::Check& check, const at::Tensor& key_padding_mask, const Heads& heads) {
  at::Tensor mask = key_padding_mask;
  if (mask.dim() == 2) mask = mask.unsqueeze(1);
  if (mask.dim() != 3 || mask.sym_size(1) != 1 || mask.sym_size(2) != heads.k.sym_size(1)) {
    check.fail("key_padding_mask", ops::describe(key_padding_mask),
               "[batch, " + ops::describe_shape({heads.k.sym_size(1)}).substr(1) + " or [batch * heads, 1, seqlen_k]",
               "it says for every key of a sequence whether it is there");
  }
  if (mask.device() != heads.q.device()) check.same_device("key_padding_mask", mask, heads.q, "q");
  const c10::SymInt batch = heads.q.sym_size(0), n = mask.sym_size(0);
  if (heads.folded && n != batch && n != 1 && batch % n == 0) {  // [batch, ...] of batch * heads
    return mask.unsqueeze(1)
        .expand_symint({n, batch / n, 1, mask.sym_size(2)})
        .reshape_symint({batch, 1, 1, mask.sym_size(2)});
  }
  return split_folded(check, "key_padding_mask", mask, heads);
}

at::Tensor without_padding(const at::Tensor& t, const at::Tensor& padding) {
  const at::Tensor hidden = padding.scalar_type() == at::kBool ? padding.logical_not() : padding.isinf();
  return t.masked_fill(hidden.permute({0, 3, 1, 2}), 0);
}

OptionalTensor bias_of_heads(const ops::Check& check, const Heads& heads, const Masks& masks) {
  if (!masks.att_mask && !masks.key_padding_mask) return std::nullopt;
  at::Tensor bias;
  if (masks.att_mask) bias = attention_mask_of_heads(check, *masks.att_mask, heads);
  if (masks.key_padding_mask) {
    const at::Tensor padding = padding_of_heads(check, *masks.key_padding_mask, heads);
    if (!bias.defined()) {
      bias = padding;
    } else if (bias.scalar_type() == at::kBool && padding.scalar_type() == at::kBool) {
      bias = at::logical_and(bias, padding);
    } else {
      bias = additive(bias, heads.q.scalar_type()) + additive(padding, heads.q.scalar_type());
    }
  }
  if (bias.scalar_type() != at::kBool) bias = bias.to(heads.q.scalar_type());
  return bias.expand_symint({heads.q.sym_size(0), heads.q.sym_size(2), heads.q.sym_size(1), heads.k.sym_size(1)});
}

OptionalTensor draw_state(double p, const at::Tensor& beside) { return ops::draw_dropout_state(p, beside.device()); }

at::Tensor drop(const at::Tensor& x, double p) { return p == 0 ? x : at::dropout(x, p, /*train=*/true); }

at::Tensor attend_biased(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& bias,
                         Window window, double p, std::optional<double> scale, const OptionalTensor& philox_state,
                         const ops::BlockLists& blocks) {
  return std::get<0>(ops::call(ops::AttentionArgs{.query = q,
                                                  .key = k,
                                                  .value = v,
                                                  .attn_bias = bias,
                                                  .window_left = window.left,
                                                  .window_right = window.right,
                                                  .scale = scale,
                                                  .p = p,
                                                  .philox_state = philox_state,
                                                  .block_key_offsets = ops::to_optional(blocks.key_offsets),
                                                  .block_keys = ops::to_optional(blocks.key_blocks),
                                                  .block_query_offsets = ops::to_optional(blocks.query_offsets),
                                                  .block_queries = ops::to_optional(blocks.query_blocks),
                                                  .block_bits_of = ops::to_optional(blocks.bits_of),
                                                  .block_bits = ops::to_optional(blocks.bits),
                                                  .block_q = blocks.block_q,
                                                  .block_k = blocks.block_k}));
}

at::Tensor attend(const ops::Check& check, const Heads& heads, const Masks& masks, double p,
                  std::optional<double> scale) {
  const auto run = [&](Heads h) {
    if (masks.key_padding_mask) {
      const at::Tensor padding = padding_of_heads(check, *masks.key_padding_mask, h);
      h.k = without_padding(h.k, padding);
      h.v = without_padding(h.v, padding);
    }
    const OptionalTensor bias = bias_of_heads(check, h, masks);
    const Window window{masks.window.left, masks.causal ? 0 : masks.window.right};
    return h.restore(attend_biased(h.q, h.k, h.v, bias, window, p, scale, draw_state(p, h.q), masks.blocks));
  };
  if (heads.folded && masks.att_mask && masks.att_mask->dim() == 3) {
    const c10::SymInt n = masks.att_mask->sym_size(0), batch = heads.q.sym_size(0);
    if (n != 1 && n != batch && batch % n == 0) return run(unfolded(heads, n));
  }
  return run(heads);
}

at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double p) {
  return ops::memory_efficient_attention(q, k, v, {}, p);
}

}  // namespace xformers::nn::functional
