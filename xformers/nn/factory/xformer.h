// Models from plain data: the same from one JSON text as Python's xformers.factory.
#pragma once

#include <torch/nn/modules/container/modulelist.h>

#include "xformers/nn/factory/config.h"
#include "xformers/nn/layer.h"
#include "xformers/nn/reversible/reversible.h"

namespace xformers::nn {

// One layer of an encoder or a decoder.
class BlockImpl : public torch::nn::Module {
 public:
  // first: of its encoder or decoder; last: of the model; layer: its number in the stack. alpha: DeepNorm's.
  BlockImpl(const StackConfig& config, bool first, bool last, int64_t layer, double alpha);

  // x [batch, seqlen, dim_model], or what the first embedding takes; memory: of decoders. input_mask [batch, seqlen] or
  // [seqlen] multiplies keys and values, False and -inf as 0.
  at::Tensor forward(at::Tensor x, const std::optional<at::Tensor>& memory, const std::optional<at::Tensor>& input_mask,
                     const functional::Masks& masks = {}, const functional::Masks& cross_masks = {});

 private:
  friend class xFormerImpl;
  std::vector<std::shared_ptr<TensorLayer>> embeddings_;
  std::shared_ptr<torch::nn::Module> pose_encoding_;
  functional::Masks masks_;  // of the call, for the attention inside of its wrapper
  functional::Masks cross_masks_;
  WrappedLayer attention_, cross_, feedforward_;
  std::optional<OptionMap> simplices_;
};
TORCH_MODULE(Block);

// Encoders, decoders or both. Parameters have the names of Python's: encoders.<i>.…, decoders.<i>.…; of reversible
// encoders encoders.blocks.<i>.{f,g}.net.….
class xFormerImpl : public torch::nn::Module {
 public:
  // xformers::Error, with the path of the key, for what does not fit together.
  explicit xFormerImpl(const ModelConfig& config);

  // src: ids or tokens; the encoders' result, or with decoders what they make of (tgt or src, that result).
  at::Tensor forward(const at::Tensor& src, const std::optional<at::Tensor>& tgt = std::nullopt,
                     const std::optional<at::Tensor>& encoder_input_mask = std::nullopt,
                     const std::optional<at::Tensor>& decoder_input_mask = std::nullopt);

  // Fills the parameters; one seed gives those of Python's xFormer.init_weights.
  void init_weights(WeightInit scheme);

 private:
  at::Tensor reversed(const at::Tensor& src, const std::optional<at::Tensor>& input_mask);

  std::vector<Block> encoders_, decoders_;
  ReversibleSequence reversible_{nullptr};
  std::vector<std::shared_ptr<TensorLayer>> reversible_embeddings_;
  std::optional<OptionMap> reversible_simplices_;
  double encoder_gain_ = 1, decoder_gain_ = 1;
  bool deepnorm_ = false;
};
TORCH_MODULE_IMPL(xFormerModel, xFormerImpl);

// A holder, like those of TORCH_MODULE.
class xFormer : public xFormerModel {
 public:
  using xFormerModel::xFormerModel;
  static xFormer from_json(const std::string& text) { return xFormer(ModelConfig::from_json(text)); }
};

}  // namespace xformers::nn
