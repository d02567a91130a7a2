// Three ways to compute the same causal attention.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace microgpt {

enum class AttentionKind {
  kOurs,     // xformers::ops::memory_efficient_attention
  kSdpa,     // PyTorch's fused attention
  kVanilla,  // softmax(q k^T / sqrt(head_dim)) v, scores and all
};

inline constexpr const char* kAttentionNames[] = {"ours", "sdpa", "vanilla"};  // in the order of AttentionKind

AttentionKind attention_kind(const std::string& name);

// q, k, v and the result: [batch, seqlen, heads, head_dim]. Position i sees positions 0…i.
at::Tensor causal_attention(AttentionKind kind, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double dropout);

}  // namespace microgpt
