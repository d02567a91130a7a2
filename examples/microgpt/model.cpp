#include "examples/microgpt/model.h"

#include <torch/nn/init.h>

#include <cmath>
#include <string>

#include "xformers/nn/checkpoint/checkpoint.h"

namespace microgpt {
namespace {

torch::nn::Linear matrix(int64_t in, int64_t out) {
  return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
}

torch::nn::LayerNorm layer_norm(int64_t dim) { return torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})); }

// e^(i * position * frequency), frequencies falling from 1 to 1e-4: [context, 1, 1, head_dim / 2], complex.
at::Tensor rotations(const ModelOptions& options) {
  const int64_t pairs = options.dim / options.heads / 2;
  const at::Tensor frequencies = at::pow(1e-4, at::arange(pairs, at::kFloat) / static_cast<double>(pairs));
  const at::Tensor angles = at::outer(at::arange(options.context, at::kFloat), frequencies);
  return at::polar(at::ones_like(angles), angles).view({options.context, 1, 1, pairs});
}

// Turns neighbouring pairs of each head, so that scores depend on distance alone.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& rotation) {
  const at::Tensor pairs = at::view_as_complex(x.to(at::kFloat).unflatten(-1, at::IntArrayRef{-1, 2}));
  return at::view_as_real(pairs * rotation).flatten(-2).to(x.scalar_type());
}

}  // namespace

Block::Block(const ModelOptions& options, const CausalAttention& attention, const FeedForward& feed_forward)
    : attention_(attention),
      feed_forward_(feed_forward),
      heads_(options.heads),
      dropout_(options.dropout),
      attention_norm_(register_module("attention_norm", layer_norm(options.dim))),
      feed_forward_norm_(register_module("feed_forward_norm", layer_norm(options.dim))),
      qkv_(register_module("qkv", matrix(options.dim, 3 * options.dim))),
      attention_out_(register_module("attention_out", matrix(options.dim, options.dim))),
      up_(register_module("up", matrix(options.dim, 4 * options.dim))),
      down_(register_module("down", matrix(4 * options.dim, options.dim))) {}

at::Tensor Block::attend(const at::Tensor& x, const at::Tensor& rotation) {
  const at::Tensor qkv = qkv_(x).unflatten(-1, at::IntArrayRef{3, heads_, -1});  // [batch, seqlen, 3, heads, head_dim]
  const at::Tensor qk = rotate(qkv.narrow(2, 0, 2), rotation);
  const at::Tensor out = attention_(qk.select(2, 0), qk.select(2, 1), qkv.select(2, 2), is_training() ? dropout_ : 0.0);
  return attention_out_(out.flatten(-2));
}

at::Tensor Block::forward(const at::Tensor& x, const at::Tensor& rotation) {
  const auto drop = [&](const at::Tensor& branch) {
    return dropout_ > 0 ? at::dropout(branch, dropout_, is_training()) : branch;
  };
  const at::Tensor h = x + drop(attend(attention_norm_(x), rotation));
  return h + drop(feed_forward_(feed_forward_norm_(h), up_->weight, down_->weight));
}

Gpt::Gpt(const ModelOptions& options, const ComputeOptions& compute)
    : options_(options),
      embedding_(register_module("embedding", torch::nn::Embedding(kVocabulary, options.dim))),
      norm_(register_module("norm", layer_norm(options.dim))),
      head_(register_module("head", matrix(options.dim, kVocabulary))),
      rotation_(rotations(options)) {
  const CausalAttention attention(attention_kind(compute.attention), options.context, compute.block);
  const FeedForward feed_forward(compute.sparse24);
  for (int64_t i = 0; i < options.layers; ++i) {
    blocks_.push_back(
        register_module("block" + std::to_string(i), std::make_shared<Block>(options, attention, feed_forward)));
  }
  // Branches write into the residual stream, 2 per block: smaller, so that its size does not grow with depth.
  torch::NoGradGuard no_grad;
  const double branch_scale = 1 / std::sqrt(2.0 * static_cast<double>(options.layers));
  for (const auto& parameter : named_parameters()) {
    if (parameter.value().dim() < 2) continue;
    const std::string& name = parameter.key();
    const bool branch_end = name.ends_with("attention_out.weight") || name.ends_with("down.weight");
    torch::nn::init::normal_(parameter.value(), 0, 0.02 * (branch_end ? branch_scale : 1));
  }
}

at::Tensor Gpt::forward(const at::Tensor& tokens) {
  if (rotation_.device() != tokens.device()) rotation_ = rotation_.to(tokens.device());
  const at::Tensor rotation = rotation_.narrow(0, 0, tokens.size(1));
  at::Tensor x = embedding_(tokens);
  for (const auto& block : blocks_) {
    const auto run = [block, rotation](const at::Tensor& input) { return block->forward(input, rotation); };
    x = checkpoint_blocks_ ? xformers::nn::checkpoint(run, x) : run(x);
  }
  return head_(norm_(x));
}

int64_t Gpt::num_parameters() const {
  int64_t count = 0;
  for (const at::Tensor& parameter : parameters()) count += parameter.numel();
  return count;
}

}  // namespace microgpt
