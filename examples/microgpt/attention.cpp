#include "examples/microgpt/attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "examples/microgpt/error.h"
#include "xformers/ops/attention/attention.h"

namespace microgpt {
namespace {

at::Tensor vanilla(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double dropout) {
  const int64_t seqlen = q.size(2);
  at::Tensor scores = at::matmul(q, k.transpose(-2, -1)) / std::sqrt(static_cast<double>(q.size(3)));
  const at::Tensor hidden = at::ones({seqlen, seqlen}, q.options().dtype(at::kBool)).triu(1);
  scores = scores.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  return at::matmul(at::dropout(at::softmax(scores, -1), dropout, /*train=*/dropout > 0), v);
}

// Which kinds PyTorch may choose from.
void allow(AttentionKind kind) {
  at::Context& context = at::globalContext();
  const bool any = kind == AttentionKind::kSdpa;
  context.setSDPUseFlash(any || kind == AttentionKind::kFlash);
  context.setSDPUseCuDNN(any || kind == AttentionKind::kCudnn);
  context.setSDPUseMemEfficient(any || kind == AttentionKind::kEfficient);
  context.setSDPUseMath(any);
}

}  // namespace

AttentionKind attention_kind(const std::string& name) {
  const auto* const found = std::find(std::begin(kAttentionNames), std::end(kAttentionNames), name);
  if (found == std::end(kAttentionNames)) throw Error("attention '" + name + "' is unknown.  Fix: see --help");
  return static_cast<AttentionKind>(found - std::begin(kAttentionNames));
}

at::Tensor causal_attention(AttentionKind kind, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double dropout) {
  if (kind == AttentionKind::kOurs) {
    return xformers::ops::memory_efficient_attention(q, k, v, xformers::ops::LowerTriangularMask(), dropout);
  }
  // The others want [batch, heads, seqlen, head_dim].
  const at::Tensor qt = q.transpose(1, 2), kt = k.transpose(1, 2), vt = v.transpose(1, 2);
  if (kind == AttentionKind::kVanilla) return vanilla(qt, kt, vt, dropout).transpose(1, 2);
  allow(kind);
  const at::Tensor out = at::scaled_dot_product_attention(qt, kt, vt, std::nullopt, dropout, /*is_causal=*/true);
  return out.transpose(1, 2);
}

}  // namespace microgpt
