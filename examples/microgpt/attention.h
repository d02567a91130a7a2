// Several ways to compute the same causal attention.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace microgpt {

enum class AttentionKind {
  kOurs,  // xformers::ops::memory_efficient_attention
  kSdpa,  // PyTorch's fused attention, whichever kind it chooses
  kFlash,
  kCudnn,
  kEfficient,  // one kind of it
  kVanilla,    // softmax(q k^T / sqrt(head_dim)) v, scores and all
};

inline constexpr const char* kAttentionNames[] = {"ours",  "sdpa",      "flash",
                                                  "cudnn", "efficient", "vanilla"};  // in the order of AttentionKind

AttentionKind attention_kind(const std::string& name);

// q, k, v and the result: [batch, seqlen, heads, head_dim]. Position i sees positions 0…i.
at::Tensor causal_attention(AttentionKind kind, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            double dropout);

}  // namespace microgpt
