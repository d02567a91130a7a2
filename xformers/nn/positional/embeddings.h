// Embeddings of positions, words and patches (functional/embedding.h) with their parameters.
#pragma once

#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>

#include "xformers/nn/layer.h"
#include "xformers/nn/registry/option_map.h"

namespace xformers::nn {

struct SinePositionalEmbeddingOptions {
  int64_t dim_model = 0;
  static constexpr auto fields() { return std::tuple{field("dim_model", &SinePositionalEmbeddingOptions::dim_model)}; }
};

class SinePositionalEmbeddingImpl : public torch::nn::Cloneable<SinePositionalEmbeddingImpl>, public TensorLayer {
 public:
  explicit SinePositionalEmbeddingImpl(const SinePositionalEmbeddingOptions& options_arg) : options(options_arg) {}
  void reset() override {}
  at::Tensor forward(const at::Tensor& x) override;

  SinePositionalEmbeddingOptions options;
};
TORCH_MODULE(SinePositionalEmbedding);

struct VocabEmbeddingOptions {
  int64_t dim_model = 0, seq_len = 0, vocab_size = 0;
  double dropout = 0;
  static constexpr auto fields() {
    using O = VocabEmbeddingOptions;
    return std::tuple{field("dim_model", &O::dim_model), field("seq_len", &O::seq_len),
                      field("vocab_size", &O::vocab_size), field("dropout", &O::dropout)};
  }
};

class VocabEmbeddingImpl : public torch::nn::Cloneable<VocabEmbeddingImpl>, public TensorLayer {
 public:
  explicit VocabEmbeddingImpl(const VocabEmbeddingOptions& options);
  void reset() override;
  at::Tensor forward(const at::Tensor& ids) override;  // int32 or int64 [batch, up to seq_len]
  bool init_weights(double gain) override;             // N(0, 0.02 gain)

  VocabEmbeddingOptions options;
  torch::nn::Embedding position_embeddings{nullptr}, word_embeddings{nullptr};
};
TORCH_MODULE(VocabEmbedding);

struct LearnablePositionalEmbeddingOptions {
  int64_t seq_len = 0, dim_model = 0;
  bool add_class_token = false;
  static constexpr auto fields() {
    using O = LearnablePositionalEmbeddingOptions;
    return std::tuple{field("seq_len", &O::seq_len), field("dim_model", &O::dim_model),
                      field("add_class_token", &O::add_class_token)};
  }
};

class LearnablePositionalEmbeddingImpl : public torch::nn::Cloneable<LearnablePositionalEmbeddingImpl>,
                                         public TensorLayer {
 public:
  explicit LearnablePositionalEmbeddingImpl(const LearnablePositionalEmbeddingOptions& options);
  void reset() override;  // N(0, 0.02); the class token zeros
  at::Tensor forward(const at::Tensor& x) override;

  LearnablePositionalEmbeddingOptions options;
  at::Tensor pos_emb, class_token;  // [1, seq_len (+ 1), dim_model]; [dim_model], or undefined
};
TORCH_MODULE(LearnablePositionalEmbedding);

struct PatchEmbeddingOptions {
  int64_t in_channels = 0, out_channels = 0, kernel_size = 1, stride = 1, padding = 0;
  std::string pool_type = "CONV_2D";
  static constexpr auto fields() {
    using O = PatchEmbeddingOptions;
    return std::tuple{field("in_channels", &O::in_channels), field("out_channels", &O::out_channels),
                      field("kernel_size", &O::kernel_size), field("stride", &O::stride),
                      field("padding", &O::padding),         field("pool_type", &O::pool_type)};
  }
};

// Images [batch, channels, height, width], or tokens of a square grid, to patches [batch, patches, out_channels].
// Parameters 1.weight and 1.bias, as in Python.
class PatchEmbeddingImpl : public torch::nn::Cloneable<PatchEmbeddingImpl>, public TensorLayer {
 public:
  explicit PatchEmbeddingImpl(const PatchEmbeddingOptions& options);
  void reset() override;
  at::Tensor forward(const at::Tensor& x) override;

  PatchEmbeddingOptions options;
};
TORCH_MODULE(PatchEmbedding);

}  // namespace xformers::nn
