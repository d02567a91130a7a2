#include "examples/microgpt/attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "examples/microgpt/error.h"
#include "xformers/ops/attention/attention.h"

namespace microgpt {
namespace {

at::Tensor vanilla(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double dropout) {
  const int64_t seqlen = q.size(2);
  at::Tensor scores = at::matmul(q, k.transpose(-2, -1)) / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor hidden = at::ones({seqlen, seqlen}, at::kBool).triu(1);
  scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  return at::matmul(at::dropout(at::softmax(scores, -1), dropout, /*train=*/dropout > 0), v);
}

}  // namespace

AttentionKind attention_kind(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kAttentionNames[i]) return static_cast<AttentionKind>(i);
  }
  throw Error("attention '" + name + "' is unknown, expected ours, sdpa or vanilla");
}

at::Tensor causal_attention(AttentionKind kind, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double dropout) {
  if (kind == AttentionKind::kOurs) {
    return xformers::ops::memory_efficient_attention(q, k, v, xformers::ops::LowerTriangularMask(), dropout);
  }
  // The others want [batch, heads, seqlen, head_dim].
  const at::Tensor qt = q.transpose(1, 2), kt = k.transpose(1, 2), vt = v.transpose(1, 2);
  const at::Tensor out = kind == AttentionKind::kSdpa
                             ? at::scaled_dot_product_attention(qt, kt, vt, std::nullopt, dropout, /*is_causal=*/true)
                             : vanilla(qt, kt, vt, dropout);
  return out.transpose(1, 2);
}

}  // namespace microgpt
