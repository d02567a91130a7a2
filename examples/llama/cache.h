// Keys and values of all tokens so far, in a slot of fixed size per text, or in pages that texts take as they grow.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <tuple>
#include <vector>

#include "examples/llama/model.h"
#include "xformers/ops/attention/attn_bias.h"

namespace llama {

class Cache {
 public:
  virtual ~Cache() = default;

  // The next forward brings counts[b] tokens of text b, one text after the other. examples::Error where one of the
  // texts grows beyond `capacity`.
  void extend(at::IntArrayRef counts);
  // Turns q [1, tokens, kv_heads, heads / kv_heads, head_dim] and k [1, tokens, kv_heads, 1, head_dim] by their
  // positions, and keeps k and v. Returns the turned q.
  virtual at::Tensor append(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) = 0;
  // Who sees whom, for the queries of this forward; made once for all layers.
  const xformers::ops::AttentionBias& bias() const { return bias_; }
  // [1, rows, kv_heads, 1, head_dim]
  const at::Tensor& keys(int64_t layer) const { return keys_[layer]; }
  const at::Tensor& values(int64_t layer) const { return values_[layer]; }

  int64_t texts() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t length(int64_t text) const { return lengths_[text]; }
  int64_t bytes() const;

 protected:
  Cache(const Model& model, int64_t texts, int64_t capacity, int64_t rows);
  virtual void extended(at::IntArrayRef counts) = 0;  // lengths_ has grown by counts

  const Config config_;
  const int64_t capacity_;
  std::vector<int64_t> lengths_;
  std::vector<at::Tensor> keys_, values_;  // of each layer
  xformers::ops::AttentionBias bias_;
  xformers::ops::RopePaddedOptions rope_;
};

// `page_size` 0: padded. Room for `capacity` tokens of each text.
std::unique_ptr<Cache> make_cache(const Model& model, int64_t texts, int64_t capacity, int64_t page_size);

}  // namespace llama
