// Projections and heads around an attention.
#pragma once

#include "xformers/nn/attention/attention.h"
#include "xformers/nn/attention/input_projection.h"
#include "xformers/nn/positional/rotary_embedding.h"
#include "xformers/nn/registry/option_map.h"

namespace xformers::nn {

struct MultiHeadDispatchOptions {
  int64_t dim_model = 0, num_heads = 1;
  std::optional<int64_t> dim_key{}, dim_value{};        // what is projected to, dim_model by default
  std::array<bool, 4> bias = {true, true, true, true};  // of queries, keys, values and output
  double residual_dropout = 0;
  bool use_separate_proj_weight = true;
  bool use_rotary_embeddings = false;
  torch::nn::Linear out_proj{nullptr};  // from dim_value features, in place of one of the module's own
};

// Projects queries, keys and values [batch, seqlen, dim_model], splits them into heads (views: nothing is folded or
// copied), runs the attention, merges the heads and projects. An attention that handles heads itself is called alone.
class MultiHeadDispatchImpl : public torch::nn::Cloneable<MultiHeadDispatchImpl> {
 public:
  // attention: a module that is an Attention, as attention_registry() builds them; else xformers::Error. So are widths
  // that heads do not divide, and another dim_value without an out_proj.
  MultiHeadDispatchImpl(const MultiHeadDispatchOptions& options, std::shared_ptr<torch::nn::Module> attention);
  void reset() override;

  // xformers::Error for shapes that do not fit and masks that the attention does not take.
  at::Tensor forward(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const functional::Masks& masks);
  at::Tensor forward(const at::Tensor& query) { return forward(query, query, query, {}); }

  MultiHeadDispatchOptions options;
  std::shared_ptr<torch::nn::Module> attention;
  InputProjection in_proj_container{nullptr};
  RotaryEmbedding rotary_embeddings{nullptr};
  torch::nn::Linear proj{nullptr};

 private:
  Attention& as_attention() const;

  bool is_made_ = false;
};
TORCH_MODULE(MultiHeadDispatch);

// attention: the options of attention_registry(), completed by num_heads, dim_model, dim_features and dim_head.
MultiHeadDispatch build_multi_head_attention(const MultiHeadDispatchOptions& options, OptionMap attention);

}  // namespace xformers::nn
