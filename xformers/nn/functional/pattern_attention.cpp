#include "xformers/nn/functional/pattern_attention.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include "xformers/nn/functional/attend.h"
#include "xformers/nn/functional/attention_patterns.h"

namespace xformers::nn::functional {
namespace {

// q, k and v followed by zeros up to `length` tokens.
Heads padded(const ops::Check& check, const Heads& heads, int64_t length) {
  const c10::SymInt seqlen = heads.q.sym_size(1);
  check.equal("k.seqlen", heads.k.sym_size(1), seqlen, "every token has a query, a key and a value");
  if (seqlen > length) {
    check.fail("seqlen", ops::describe_shape({seqlen}), "at most " + std::to_string(length),
               "build the attention for longer sequences");
  }
  if (seqlen == length) return heads;
  const auto pad = [&](const at::Tensor& t) {
    return at::constant_pad_nd_symint(t, c10::SymDimVector{0, 0, 0, 0, 0, length - seqlen});
  };
  Heads result = heads;
  result.q = pad(heads.q);
  result.k = pad(heads.k);
  result.v = pad(heads.v);
  return result;
}

at::Tensor cut(const at::Tensor& out, const c10::SymInt& seqlen) {
  return out.sym_size(1) == seqlen ? out : out.narrow_symint(1, 0, seqlen);
}

// A mask of the sequence where the pattern shows a key; tokens of zeros behind the sequence are not masked.
at::Tensor beside(const at::Tensor& mask, const at::Tensor& pattern) {
  const c10::SymInt missing = pattern.sym_size(0) - mask.sym_size(-1);
  const bool is_bool = mask.scalar_type() == at::kBool;
  const at::Tensor whole =
      missing <= 0 || mask.sym_size(-1) == 1
          ? mask
          : at::constant_pad_nd_symint(mask, c10::SymDimVector{0, missing, 0, mask.sym_size(-2) == 1 ? 0 : missing},
                                       is_bool ? 1 : 0);
  return is_bool
             ? whole.logical_and(pattern)
             : at::where(pattern, whole, at::scalar_tensor(-std::numeric_limits<double>::infinity(), whole.options()));
}

at::Tensor under_pattern(const ops::Check& check, const Heads& heads, const at::Tensor& pattern,
                         const OptionalTensor& att_mask, const OptionalTensor& key_padding_mask, bool causal,
                         double p) {
  const int64_t length = pattern.size(0);
  Masks masks{pattern, key_padding_mask, causal};
  if (att_mask) masks.att_mask = beside(*att_mask, pattern);
  if (key_padding_mask && key_padding_mask->sym_size(-1) < length) {
    const c10::SymInt missing = length - key_padding_mask->sym_size(-1);
    masks.key_padding_mask = at::constant_pad_nd_symint(*key_padding_mask, c10::SymDimVector{0, missing},
                                                        key_padding_mask->scalar_type() == at::kBool ? 1 : 0);
  }
  return cut(attend(check, padded(check, heads, length), masks, p), heads.q.sym_size(1));
}

}  // namespace

at::Tensor global_attention(const GlobalAttentionArgs& args) {
  const ops::Check check(args.kName);
  const Heads given(check, args.q, args.k, args.v);
  check.dims("global_tokens", args.global_tokens, 1, "[global tokens]");
  const at::Tensor& tokens = args.global_tokens;
  const at::Tensor places = at::arange(args.seq_len, tokens.options());
  const int64_t count = tokens.size(0);
  // Both products together are 2 count / seq_len of all scores.
  if (args.att_mask || 2 * count >= args.seq_len) {
    const at::Tensor is_global = at::zeros({args.seq_len}, tokens.options().dtype(at::kBool)).index_fill(0, tokens, 1);
    return under_pattern(check, given, global_token_pattern(is_global), args.att_mask, std::nullopt, args.causal,
                         args.p);
  }
  const Heads heads = padded(check, given, args.seq_len);
  const auto rows = [&](const at::Tensor& t) { return t.index_select(1, tokens); };
  Masks to_global, of_global;
  if (args.causal) {
    to_global.att_mask = tokens <= places.unsqueeze(1);
    of_global.att_mask = places <= tokens.unsqueeze(1);
  }
  const auto part = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Masks& masks) {
    Heads some = heads;
    some.q = q;
    some.k = k;
    some.v = v;
    some.folded = false;
    return attend(check, some, masks, args.p);
  };
  const at::Tensor all = part(heads.q, rows(heads.k), rows(heads.v), to_global);
  const at::Tensor out = all.index_copy(1, tokens, part(rows(heads.q), heads.k, heads.v, of_global));
  return given.restore(cut(out, given.q.sym_size(1)));
}

at::Tensor pattern_attention(const PatternAttentionArgs& args) {
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  check.dims("pattern", args.pattern, 2, "[seqlen, seqlen]");
  check.equal("pattern.columns", args.pattern.sym_size(1), args.pattern.sym_size(0), "it is square");
  return under_pattern(check, heads, args.pattern, args.att_mask, args.key_padding_mask, args.causal, args.p);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::nn::functional;
  xformers::ops::define<GlobalAttentionArgs, PatternAttentionArgs>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<global_attention>(m);
  xformers::ops::implement<pattern_attention>(m);
}
