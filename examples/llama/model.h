// A decoder's sizes and weights, wherever they come from.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "xformers/ops/rope/rope.h"

namespace llama {

struct Config {
  int64_t layers = 0;
  int64_t dim = 0;                  // of the residual stream
  int64_t heads = 0, kv_heads = 0;  // queries' heads, and those of keys and values that they share
  int64_t head_dim = 0;
  int64_t hidden = 0;  // of the feed-forward
  int64_t vocabulary = 0;
  int64_t context = 0;  // tokens that the model was trained to look back on
  double norm_eps = 1e-5;
  double rope_theta = 10000;
  xformers::ops::RotaryScaling rope_scaling{};
  bool rope_adjacents = false;        // pairs (2j, 2j + 1), else (j, j + head_dim / 2)
  bool gated = true;                  // down(silu(gate x) * up x), else down(gelu(up x)), gelu by tanh
  bool bytes = false;                 // a token is a byte
  std::vector<int64_t> end_tokens{};  // one of these ends a text; may be empty
};

// RMSNorm has no bias; with one, the norm is a LayerNorm.
struct Norm {
  at::Tensor weight, bias{};  // [dim]
};

struct Layer {
  Norm attention_norm, feed_forward_norm;
  at::Tensor qkv;   // [(heads + 2 kv_heads) head_dim, dim]: queries', keys', values' rows
  at::Tensor out;   // [dim, heads head_dim]
  at::Tensor up;    // gated: [2, hidden, dim], gate and up; else [hidden, dim]
  at::Tensor down;  // [dim, hidden]
};

// All of one dtype, on one device.
struct Model {
  Config config;
  at::Tensor embedding;  // [vocabulary, dim]
  std::vector<Layer> layers;
  Norm norm;
  at::Tensor head;  // [vocabulary, dim]; may be the embedding
};

int64_t num_parameters(const Model& model);

}  // namespace llama
