#include "xformers/nn/positional/embeddings.h"

#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <torch/nn/modules/conv.h>

#include "xformers/nn/functional/embedding.h"
#include "xformers/nn/optional.h"
#include "xformers/ops/common/check.h"

namespace xformers::nn {

at::Tensor SinePositionalEmbeddingImpl::forward(const at::Tensor& x) { return sine_embedding(x, options.dim_model); }

VocabEmbeddingImpl::VocabEmbeddingImpl(const VocabEmbeddingOptions& options_arg) : options(options_arg) {
  VocabEmbeddingImpl::reset();
}

void VocabEmbeddingImpl::reset() {
  position_embeddings =
      register_module("position_embeddings", torch::nn::Embedding(options.seq_len, options.dim_model));
  word_embeddings = register_module("word_embeddings", torch::nn::Embedding(options.vocab_size, options.dim_model));
  init_weights(1);
}

bool VocabEmbeddingImpl::init_weights(double gain) {
  const at::NoGradGuard no_grad;
  position_embeddings->weight.normal_(0, 0.02 * gain);
  word_embeddings->weight.normal_(0, 0.02 * gain);
  return true;
}

at::Tensor VocabEmbeddingImpl::forward(const at::Tensor& ids) {
  return vocab_embedding(ids, word_embeddings->weight, position_embeddings->weight,
                         is_training() ? options.dropout : 0);
}

LearnablePositionalEmbeddingImpl::LearnablePositionalEmbeddingImpl(
    const LearnablePositionalEmbeddingOptions& options_arg)
    : options(options_arg) {
  LearnablePositionalEmbeddingImpl::reset();
}

void LearnablePositionalEmbeddingImpl::reset() {
  const bool with_token = options.add_class_token;
  pos_emb =
      register_parameter("pos_emb", at::randn({1, options.seq_len + (with_token ? 1 : 0), options.dim_model}) * 0.02);
  class_token =
      register_parameter("class_token", with_token ? at::zeros({options.dim_model}) : at::Tensor(), with_token);
}

at::Tensor LearnablePositionalEmbeddingImpl::forward(const at::Tensor& x) {
  return learnable_embedding(x, pos_emb, to_optional(class_token));
}

PatchEmbeddingImpl::PatchEmbeddingImpl(const PatchEmbeddingOptions& options_arg) : options(options_arg) {
  if (options.pool_type != "CONV_2D") {
    ops::Check("PatchEmbedding").fail("pool_type", "'" + options.pool_type + "'", "'CONV_2D'", "leave it out");
  }
  PatchEmbeddingImpl::reset();
}

void PatchEmbeddingImpl::reset() {
  register_module(
      "1", torch::nn::Conv2d(torch::nn::Conv2dOptions(options.in_channels, options.out_channels, options.kernel_size)
                                 .stride(options.stride)
                                 .padding(options.padding)));
}

at::Tensor PatchEmbeddingImpl::forward(const at::Tensor& x) {
  return grid_to_tokens(named_children()["1"]->as<torch::nn::Conv2dImpl>()->forward(tokens_to_grid(x)));
}

}  // namespace xformers::nn
