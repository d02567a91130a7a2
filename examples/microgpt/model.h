// A decoder-only transformer over bytes: pre-norm blocks, rotary positions, no biases in the matrices.
#pragma once

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <memory>
#include <vector>

#include "examples/microgpt/attention.h"
#include "examples/microgpt/feed_forward.h"
#include "examples/microgpt/options.h"

namespace microgpt {

inline constexpr int64_t kVocabulary = 256;  // a token is a byte

// x + attention(norm(x)), then x + feed_forward(norm(x)).
class Block : public torch::nn::Module {
 public:
  Block(const ModelOptions& options, const CausalAttention& attention, const FeedForward& feed_forward);
  // x [batch, seqlen, dim]; rotation [seqlen, 1, 1, head_dim / 2], complex.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& rotation);

 private:
  at::Tensor attend(const at::Tensor& x, const at::Tensor& rotation);

  CausalAttention attention_;
  FeedForward feed_forward_;
  int64_t heads_;
  double dropout_;
  torch::nn::LayerNorm attention_norm_, feed_forward_norm_;
  torch::nn::Linear qkv_, attention_out_, up_, down_;
};

class Gpt : public torch::nn::Module {
 public:
  // Weights are drawn from the default generator.
  Gpt(const ModelOptions& options, const ComputeOptions& compute);
  at::Tensor forward(const at::Tensor& tokens);  // int64 [batch, seqlen <= context] -> [batch, seqlen, 256]
  const ModelOptions& options() const { return options_; }
  int64_t num_parameters() const;
  void checkpoint_blocks(bool on) {
    checkpoint_blocks_ = on;
  }  // they keep their inputs alone, and run again in backward

 private:
  ModelOptions options_;
  torch::nn::Embedding embedding_;
  std::vector<std::shared_ptr<Block>> blocks_;
  torch::nn::LayerNorm norm_;
  torch::nn::Linear head_;
  at::Tensor rotation_;
  bool checkpoint_blocks_ = false;
};

}  // namespace microgpt
