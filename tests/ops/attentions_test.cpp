// The attention mechanisms and MultiHeadDispatch as C++ modules: by name, state dicts, formulas, gradients. Accuracy in
// depth: tests/python, through the same functions.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "xformers/kernels/base/error.h"
#include "xformers/nn/attention/compositional.h"
#include "xformers/nn/attention/mechanisms.h"
#include "xformers/nn/attention/multi_head_dispatch.h"
#include "xformers/nn/attention/sparse_mechanisms.h"
#include "xformers/nn/functional/attention_patterns.h"
#include "xformers/nn/functional/fourier_mix.h"
#include "xformers/nn/functional/scaled_dot_product.h"
#include "xformers/nn/registry/registry.h"

namespace xformers::nn {
namespace {

constexpr int64_t kHeads = 2, kDim = 8;

OptionMap options(const std::string& name) {
  return {{"name", name},
          {"dropout", 0.0},
          {"num_heads", kHeads},
          {"dim_model", kHeads * kDim},
          {"seq_len", 16},
          {"dim_head", kDim},
          {"num_landmarks", 4},
          {"causal", false},
          {"r", 0.5},
          {"attention_query_mask", at::arange(9) < 2},
          {"layout", at::ones({kHeads, 1, 1}, at::kLong)}};
}

at::Tensor tokens(int64_t seqlen = 9) { return at::randn({3, seqlen, kHeads * kDim}, at::kDouble); }

TEST(Attentions, AllAreThereByName) {
  const std::vector<std::string> expected{
      "blocksparse",        "compositional", "favor",   "fourier_mix", "global",  "lambda",
      "linformer",          "local",         "nystrom", "orthoformer", "pooling", "random",
      "scaled_dot_product", "visual"};
  EXPECT_EQ(attention_registry().names(), expected);
  for (const std::string& name : expected) {
    const auto module = attention_registry().build(options(name));
    module->to(at::kDouble);
    auto* attention = dynamic_cast<Attention*>(module.get());
    ASSERT_NE(attention, nullptr) << name;
    const bool whole = attention->flags.requires_skip_multi_head;
    const at::Tensor x = (whole ? tokens() : tokens().view({3, 9, kHeads, kDim})).requires_grad_();
    const at::Tensor out = attention->forward(x, x, x);
    EXPECT_EQ(out.sizes(), x.sizes()) << name;
    out.square().sum().backward();
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>()) << name;
    for (const auto& parameter : module->named_parameters()) {
      if (!parameter.value().requires_grad()) continue;  // the shared weight under its other names
      EXPECT_TRUE(parameter.value().grad().defined()) << name << " " << parameter.key();
    }
    const auto copied = module->clone();
    EXPECT_EQ(copied->named_parameters().keys(), module->named_parameters().keys());
  }
}

TEST(Attentions, FoldedHeadsAreTheSame) {
  const at::Tensor q = tokens().view({3, 9, kHeads, kDim});
  const auto folded = [](const at::Tensor& t) { return t.transpose(1, 2).flatten(0, 1); };
  for (const char* name : {"scaled_dot_product", "nystrom", "linformer", "lambda", "local", "global"}) {
    const auto module = attention_registry().build(options(name));
    module->to(at::kDouble);
    auto& attention = dynamic_cast<Attention&>(*module);
    const at::Tensor out = attention.forward(q, q * 2, q * 3),
                     other = attention.forward(folded(q), folded(q) * 2, folded(q) * 3);
    EXPECT_TRUE(at::allclose(folded(out), other)) << name;
  }
}

TEST(Attentions, ThoseOfPatternsAreMasked) {
  const at::Tensor q = at::randn({4, 9, kDim}, at::kDouble), k = at::randn_like(q), v = at::randn_like(q);
  const auto masked = [&](const at::Tensor& keep) {
    return functional::scaled_dot_product({.q = q, .k = k, .v = v, .att_mask = keep});
  };
  const at::Tensor places = at::arange(9), back = places.unsqueeze(1) - places,
                   global = at::isin(places, at::arange(2));
  EXPECT_TRUE(at::allclose(LocalAttention(LocalOptions{.window_size = 3})->forward(q, k, v), masked(back.abs() <= 1)));
  EXPECT_TRUE(at::allclose(LocalAttention(LocalOptions{.causal = true, .window_size = 2})->forward(q, k, v),
                           masked((back >= 0) & (back <= 2))));
  GlobalAttention few(GlobalOptions{.attention_query_mask = global, .causal = true});
  EXPECT_TRUE(at::allclose(few->forward(q, k, v), masked((global.unsqueeze(1) | global) & (back >= 0))));
  RandomAttention random(RandomOptions{.r = 0.5});
  const at::Tensor out = random->forward(q, k, v);
  EXPECT_TRUE(at::allclose(out, masked(random->rand_attention_mask)));
  EXPECT_TRUE(at::equal(out, random->forward(q, k, v)));
  const at::Tensor layout = at::tensor({1, 0, 1, 1}).view({1, 2, 2});
  const at::Tensor x = at::randn({4, 25, kDim}, at::kDouble);
  const at::Tensor keep = functional::layout_to_pattern(layout[0], 16).narrow(0, 0, 25).narrow(1, 0, 25);
  BlockSparseAttention blocks(BlockSparseOptions{.layout = layout});
  EXPECT_TRUE(at::allclose(blocks->forward(x, x, x),
                           functional::scaled_dot_product({.q = x, .k = x, .v = x, .att_mask = keep})));
}

TEST(Attentions, StateDictsHaveTheNamesOfCheckpoints) {
  const auto names = [](const torch::nn::Module& module) { return module.named_parameters().keys(); };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names(*LinformerAttention(LinformerOptions{.seq_len = 16})), (Names{"E.weight", "F.weight"}));
  EXPECT_EQ(names(*NystromAttention(NystromOptions{.num_heads = 2, .conv_kernel_size = 3})),
            Names{"skip_connection.weight"});
  EXPECT_EQ(names(*Visual(VisualOptions{.dim_model = 4}))[2], "block.2.conv0.weight");
  const CompositionalAttention compositional(CompositionalOptions{.dim_model = 8, .num_heads = 2, .nonlinear = true});
  EXPECT_EQ(names(*compositional).back(), "score_network.2.bias");
  const MultiHeadDispatch module = build_multi_head_attention({.dim_model = 8, .num_heads = 2}, options("linformer"));
  EXPECT_EQ(names(*module)[0], "attention.E.weight");
  EXPECT_EQ(names(*module)[2], "in_proj_container.q_proj.weight");
}

TEST(Attentions, FourierMixIsTheRealPartOfTheTransform) {
  const at::Tensor x = at::randn({2, 5, 6}, at::kDouble);
  EXPECT_TRUE(at::allclose(functional::fourier_mix({x}), at::real(at::fft_fft2(x))));
}

TEST(Attentions, FavorDrawsItsDirectionsAgain) {
  FavorAttention module(FavorOptions{.dim_head = kDim, .iter_before_redraw = 2});
  const at::Tensor x = at::randn({2, 5, kDim});
  std::vector<at::Tensor> drawn;
  for (int i = 0; i < 3; ++i) {
    module->forward(x, x, x);
    drawn.push_back(module->omega);
  }
  EXPECT_TRUE(drawn[0].is_same(drawn[1]) && !drawn[1].is_same(drawn[2]));
  EXPECT_EQ(drawn[0].sizes(), (std::vector<int64_t>{kDim, 16}));
}

TEST(Attentions, OptionsThatCannotBe) {
  EXPECT_THROW(FavorAttention(FavorOptions{}), Error);
  EXPECT_THROW(FavorAttention(FavorOptions{.dim_features = 5}), Error);
  EXPECT_THROW(LinformerAttention(LinformerOptions{}), Error);
  EXPECT_THROW(LocalAttention(LocalOptions{.window_size = 4}), Error);
  EXPECT_THROW(GlobalAttention(GlobalOptions{}), Error);
  EXPECT_THROW(RandomAttention(RandomOptions{.r = 0}), Error);
  EXPECT_THROW(BlockSparseAttention(BlockSparseOptions{}), Error);
  EXPECT_THROW(CompositionalAttention(CompositionalOptions{.dim_model = 8, .num_heads = 3}), Error);
  EXPECT_THROW(OrthoFormerAttention(OrthoformerOptions{.num_landmarks = 0}), Error);
  EXPECT_THROW(MultiHeadDispatch(MultiHeadDispatchOptions{.dim_model = 8}, nullptr), Error);
}

MultiHeadDispatch dispatch(const char* name = "scaled_dot_product", bool rotary = false) {
  MultiHeadDispatch module = build_multi_head_attention(
      {.dim_model = kHeads * kDim, .num_heads = kHeads, .use_rotary_embeddings = rotary}, options(name));
  module->to(at::kDouble);
  return module;
}

TEST(MultiHead, IsTheFormula) {
  MultiHeadDispatch module = dispatch();
  const at::Tensor x = tokens(), keep = at::ones({9, 9}, at::kBool).tril();
  const auto& projections = *module->in_proj_container;
  const auto heads = [](const at::Tensor& t) { return t.unflatten(-1, {kHeads, kDim}).transpose(1, 2); };
  const auto linear = [&](const torch::nn::Linear& p) { return at::linear(x, p->weight, p->bias); };
  const at::Tensor q = heads(linear(projections.q_proj)), k = heads(linear(projections.k_proj));
  const at::Tensor scores = at::matmul(q, k.transpose(-1, -2)) / std::sqrt(static_cast<double>(kDim));
  const at::Tensor weights = scores.masked_fill(keep.logical_not(), -INFINITY).softmax(-1);
  const at::Tensor out = at::matmul(weights, heads(linear(projections.v_proj))).transpose(1, 2).flatten(2);
  const at::Tensor expected = at::linear(out, module->proj->weight, module->proj->bias);
  EXPECT_TRUE(at::allclose(module->forward(x, x, x, {.att_mask = keep}), expected));
  EXPECT_TRUE(at::allclose(module->forward(x, x.clone(), x, {.att_mask = keep}), expected));
}

TEST(MultiHead, WidthsOfKeysAndValues) {
  const auto build = [](std::optional<int64_t> dim_key, std::optional<int64_t> dim_value,
                        torch::nn::Linear out_proj = nullptr, bool separate = true) {
    MultiHeadDispatchOptions o{.dim_model = kHeads * kDim, .num_heads = kHeads};
    o.dim_key = dim_key;
    o.dim_value = dim_value;
    o.out_proj = std::move(out_proj);
    o.use_separate_proj_weight = separate;
    o.use_rotary_embeddings = true;
    return build_multi_head_attention(o, options("scaled_dot_product"));
  };
  const torch::nn::Linear out_proj(torch::nn::LinearOptions(3 * kHeads, 5));
  MultiHeadDispatch module = build(2 * kHeads, 3 * kHeads, out_proj);
  const at::Tensor x = tokens().to(at::kFloat);
  EXPECT_EQ(module->forward(x).sizes(), (std::vector<int64_t>{x.size(0), x.size(1), 5}));
  EXPECT_EQ(module->named_parameters()["proj.weight"].data_ptr(), out_proj->weight.data_ptr());
  EXPECT_EQ(module->in_proj_container->v_proj->weight.size(0), 3 * kHeads);
  EXPECT_EQ(build(2 * kHeads, std::nullopt)->forward(x).sizes(), x.sizes());
  EXPECT_THROW(build(2 * kHeads + 1, std::nullopt), Error);
  EXPECT_THROW(build(std::nullopt, 3 * kHeads), Error);
  EXPECT_THROW(build(2 * kHeads, std::nullopt, nullptr, /*separate=*/false), Error);
}

TEST(MultiHead, CopiesShareNothing) {
  MultiHeadDispatchOptions with_out{.dim_model = kHeads * kDim, .num_heads = kHeads};
  with_out.out_proj = torch::nn::Linear(kHeads * kDim, 5);
  for (MultiHeadDispatch module : {dispatch("linformer"), build_multi_head_attention(with_out, options("linformer"))}) {
    module->to(at::kDouble);
    const auto copied = std::dynamic_pointer_cast<MultiHeadDispatchImpl>(module->clone());
    const at::Tensor x = tokens(), before = module->forward(x);
    // Not bit for bit: the copy's weights may not lie side by side, and then three products take the place of one.
    EXPECT_TRUE(at::allclose(copied->forward(x), before, 1e-12, 1e-14));
    {
      const torch::NoGradGuard no_grad;
      for (at::Tensor& parameter : module->parameters()) parameter.zero_();
    }
    EXPECT_TRUE(at::allclose(copied->forward(x), before, 1e-12, 1e-14));
  }
}

TEST(MultiHead, WeightsLieSideBySide) {
  MultiHeadDispatch module = dispatch();
  const auto& p = *module->in_proj_container;
  const int64_t step = p.q_proj->weight.numel();
  EXPECT_EQ(p.k_proj->weight.data_ptr<double>(), p.q_proj->weight.data_ptr<double>() + step);
  EXPECT_EQ(p.v_proj->weight.data_ptr<double>(), p.q_proj->weight.data_ptr<double>() + 2 * step);
  const at::Tensor x = tokens();
  const auto [q, k, v] = module->in_proj_container->forward(x, x, x);
  EXPECT_TRUE(q.is_alias_of(v));
}

TEST(MultiHead, RunsEveryMechanism) {
  for (const std::string& name : attention_registry().names()) {
    const at::Tensor x = tokens();
    EXPECT_EQ(dispatch(name.c_str(), /*rotary=*/true)->forward(x).sizes(), x.sizes()) << name;
  }
}

TEST(MultiHead, WhatIsRefused) {
  const at::Tensor x = tokens();
  EXPECT_THROW(dispatch()->forward(x.flatten(1)), Error);
  EXPECT_THROW(dispatch("linformer")->forward(x, x, x, {.att_mask = at::ones({9, 9}, at::kBool)}), Error);
  EXPECT_THROW(dispatch("linformer")->forward(x, tokens(5), tokens(5), {}), Error);
}

}  // namespace
}  // namespace xformers::nn
