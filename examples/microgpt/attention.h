// Several ways to compute the same causal attention, and some that see a part of the past.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "xformers/ops/attention/attn_bias.h"

namespace microgpt {

enum class AttentionKind {
  kOurs,  // xformers::ops::memory_efficient_attention
  kSdpa,  // PyTorch's fused attention, whichever kind it chooses
  kFlash,
  kCudnn,
  kEfficient,  // one kind of it
  kVanilla,    // softmax(q k^T / sqrt(head_dim)) v, scores and all
  // Ours over blocks of the score matrix, one layout for all heads:
  kBigBird,     // the block before, the first one, a random one
  kLongformer,  // the block before, the first one
  kFixed,       // windows of 4 blocks, and the last block of each window before
};

inline constexpr const char* kAttentionNames[] = {"ours",    "sdpa",    "flash",      "cudnn", "efficient",
                                                  "vanilla", "bigbird", "longformer", "fixed"};  // of AttentionKind

AttentionKind attention_kind(const std::string& name);

class CausalAttention {
 public:
  // Of at most `context` positions, in blocks of `block` where a kind has them.
  CausalAttention(AttentionKind kind, int64_t context, int64_t block);

  // q, k, v and the result: [batch, seqlen, heads, head_dim]. Position i sees positions 0…i, or some of them.
  at::Tensor operator()(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double dropout);

 private:
  xformers::ops::BlockSparseMask& mask_of(const at::Tensor& q);

  AttentionKind kind_;
  int64_t block_;
  at::Tensor layout_;                                   // [1, rows, columns] of the context
  std::optional<xformers::ops::BlockSparseMask> mask_;  // of the last sequence
  int64_t mask_seqlen_ = 0;
};

}  // namespace microgpt
