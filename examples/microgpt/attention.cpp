#include "examples/microgpt/attention.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "examples/microgpt/error.h"
#include "xformers/nn/functional/sparsity_config.h"
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

// [1, rows, columns] of blocks, or undefined where a kind has none. The same for every run.
at::Tensor layout_of(AttentionKind kind, int64_t context, int64_t block) {
  namespace fn = xformers::nn::functional;
  const int64_t seqlen = (context + block - 1) / block * block;
  const auto made = [&](auto config) {
    config.block_size = block;
    config.causal = true;
    return config.make_layout(seqlen);
  };
  if (kind == AttentionKind::kFixed) return made(fn::FixedSparsityConfig());
  if (kind == AttentionKind::kLongformer) return made(fn::BSLongformerSparsityConfig());
  if (kind != AttentionKind::kBigBird) return {};
  fn::BigBirdSparsityConfig config;
  config.generator = at::make_generator<at::CPUGeneratorImpl>(uint64_t{1});
  return made(config);
}

}  // namespace

AttentionKind attention_kind(const std::string& name) {
  const auto* const found = std::find(std::begin(kAttentionNames), std::end(kAttentionNames), name);
  if (found == std::end(kAttentionNames)) throw Error("attention '" + name + "' is unknown.  Fix: see --help");
  return static_cast<AttentionKind>(found - std::begin(kAttentionNames));
}

CausalAttention::CausalAttention(AttentionKind kind, int64_t context, int64_t block)
    : kind_(kind), block_(block), layout_(layout_of(kind, context, block)) {}

xformers::ops::BlockSparseMask& CausalAttention::mask_of(const at::Tensor& q) {
  if (!mask_ || mask_seqlen_ != q.size(1)) {
    mask_seqlen_ = q.size(1);
    const int64_t blocks = (mask_seqlen_ + block_ - 1) / block_;
    const at::Tensor layout = layout_.narrow(1, 0, blocks).narrow(2, 0, blocks);
    mask_ = xformers::ops::BlockSparseMask(layout, block_).make_causal().to(q.device());
  }
  return *mask_;
}

at::Tensor CausalAttention::operator()(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double dropout) {
  if (layout_.defined()) return xformers::ops::memory_efficient_attention(q, k, v, mask_of(q), dropout);
  if (kind_ == AttentionKind::kOurs) {
    return xformers::ops::memory_efficient_attention(q, k, v, xformers::ops::LowerTriangularMask(), dropout);
  }
  // The others want [batch, heads, seqlen, head_dim].
  const at::Tensor qt = q.transpose(1, 2), kt = k.transpose(1, 2), vt = v.transpose(1, 2);
  if (kind_ == AttentionKind::kVanilla) return vanilla(qt, kt, vt, dropout).transpose(1, 2);
  allow(kind_);
  const at::Tensor out = at::scaled_dot_product_attention(qt, kt, vt, std::nullopt, dropout, /*is_causal=*/true);
  return out.transpose(1, 2);
}

}  // namespace microgpt
