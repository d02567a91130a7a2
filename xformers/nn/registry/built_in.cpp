#include "xformers/nn/registry/built_in.h"

#include "xformers/nn/attention/compositional.h"
#include "xformers/nn/attention/mechanisms.h"
#include "xformers/nn/attention/sparse_mechanisms.h"
#include "xformers/nn/feedforward/conv2d_feedforward.h"
#include "xformers/nn/feedforward/fused_mlp.h"
#include "xformers/nn/feedforward/mixture_of_experts.h"
#include "xformers/nn/positional/embeddings.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"

namespace xformers::nn {

void add_attentions(Registry& registry) {
  registry.add<ScaledDotProduct, ScaledDotProductOptions>("scaled_dot_product");
  registry.add<LinformerAttention, LinformerOptions>("linformer");
  registry.add<NystromAttention, NystromOptions>("nystrom");
  registry.add<OrthoFormerAttention, OrthoformerOptions>("orthoformer");
  registry.add<FavorAttention, FavorOptions>("favor");
  registry.add<FourierMix, FourierMixOptions>("fourier_mix");
  registry.add<LambdaLayer, LambdaOptions>("lambda");
  registry.add<Pooling, PoolingOptions>("pooling");
  registry.add<Visual, VisualOptions>("visual");
  registry.add<CompositionalAttention, CompositionalOptions>("compositional");
  registry.add<LocalAttention, LocalOptions>("local");
  registry.add<GlobalAttention, GlobalOptions>("global");
  registry.add<RandomAttention, RandomOptions>("random");
  registry.add<BlockSparseAttention, BlockSparseOptions>("blocksparse");
}

void add_feedforwards(Registry& registry) {
  registry.add<MLP, MLPOptions>("MLP");
  registry.add<Conv2DFeedforward, Conv2DFeedforwardOptions>("Conv2DFeedforward");
  registry.add("MixtureOfExperts", option_names<MixtureOfExpertsOptions>(), [](const OptionMap& given) {
    auto options = read_options<MixtureOfExpertsOptions>(given);
    const auto capacity = given.find("capacity_factor");  // None means something: nothing is dropped
    if (capacity != given.end() && capacity->second.isNone()) options.capacity_factor.reset();
    return MixtureOfExperts(options).ptr();
  });
  registry.add("FusedMLP", option_names<MLPOptions>(), [](const OptionMap& given) {
    const auto options = read_options<MLPOptions>(given);
    return FusedMLP(FusedMLPOptions{options.dim_model, options.dropout,
                                    ops::to_activation("FusedMLP", options.activation), options.hidden_layer_multiplier,
                                    options.bias})
        .ptr();
  });
}

void add_positional_embeddings(Registry& registry) {
  registry.add<SinePositionalEmbedding, SinePositionalEmbeddingOptions>("sine");
  registry.add<VocabEmbedding, VocabEmbeddingOptions>("vocab");
  registry.add<LearnablePositionalEmbedding, LearnablePositionalEmbeddingOptions>("learnable");
}

}  // namespace xformers::nn
