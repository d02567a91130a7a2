#include "examples/llama/decoder.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/tensor.h>

#include "xformers/ops/attention/attention.h"
#include "xformers/ops/norm/norm.h"
#include "xformers/ops/rope/rope.h"
#include "xformers/ops/swiglu/swiglu.h"

namespace llama {
namespace {

namespace ops = xformers::ops;

at::Tensor normalise(const Norm& norm, const at::Tensor& x, double eps) {
  return norm.bias.defined() ? ops::layer_norm(x, norm.weight, norm.bias, eps) : ops::rms_norm(x, norm.weight, eps);
}

at::Tensor feed_forward(const Config& config, const Layer& layer, const at::Tensor& x) {
  if (config.gated) return ops::swiglu_packed(x, layer.up, std::nullopt, layer.down);
  return at::linear(at::gelu(at::linear(x, layer.up), "tanh"), layer.down);
}

// q [1, tokens, kv_heads, heads / kv_heads, head_dim]; k and v [1, tokens, kv_heads, 1, head_dim].
struct Heads {
  at::Tensor q, k, v;
};
Heads heads_of(const Config& c, const at::Tensor& qkv) {
  const int64_t q_width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  const auto part = [&](int64_t start, int64_t width) {
    return qkv.narrow(-1, start, width).unflatten(-1, at::IntArrayRef{c.kv_heads, -1, c.head_dim}).unsqueeze(0);
  };
  return {part(0, q_width), part(q_width, kv_width), part(q_width + kv_width, kv_width)};
}

at::Tensor attend(const Config& c, const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values,
                  const ops::AttentionBias& bias) {
  const auto shared = [&](const at::Tensor& t) { return t.expand({-1, -1, -1, c.heads / c.kv_heads, -1}); };
  return ops::memory_efficient_attention(q, shared(keys), shared(values), bias).flatten(2)[0];
}

// `attention(i, heads)` is that of layer i: [tokens, heads head_dim]. Of the last layer's rows only those of `wanted`
// are needed, all where it is undefined.
template <class Attention>
at::Tensor run(const Model& model, const at::Tensor& tokens, const at::Tensor& wanted, Attention attention) {
  const Config& c = model.config;
  at::Tensor x = at::embedding(model.embedding, tokens.to(model.embedding.device()));
  for (int64_t i = 0; i < c.layers; ++i) {
    const Layer& layer = model.layers[i];
    at::Tensor mixed = attention(i, heads_of(c, at::linear(normalise(layer.attention_norm, x, c.norm_eps), layer.qkv)));
    if (i + 1 == c.layers && wanted.defined()) {
      mixed = mixed.index_select(0, wanted);
      x = x.index_select(0, wanted);
    }
    x = x + at::linear(mixed, layer.out);
    x = x + feed_forward(c, layer, normalise(layer.feed_forward_norm, x, c.norm_eps));
  }
  return at::linear(normalise(model.norm, x, c.norm_eps), model.head).to(at::kFloat);
}

}  // namespace

at::Tensor decode(const Model& model, Cache& cache, const at::Tensor& tokens, at::IntArrayRef counts) {
  cache.extend(counts);
  std::vector<int64_t> last;
  for (int64_t count : counts) last.push_back(count + (last.empty() ? -1 : last.back()));
  const at::Tensor wanted = at::tensor(last).to(model.embedding.device());
  return run(model, tokens, wanted, [&](int64_t i, const Heads& heads) {
    const at::Tensor q = cache.append(i, heads.q, heads.k, heads.v);
    return attend(model.config, q, cache.keys(i), cache.values(i), cache.bias());
  });
}

at::Tensor recompute(const Model& model, const at::Tensor& tokens) {
  const Config& c = model.config;
  const auto scaling = ops::to_rope_scaling(c.head_dim, c.rope_theta, c.rope_scaling);
  const auto turned = [&](const at::Tensor& x) {  // the sequence is the last but one dimension there
    return ops::rotary(x.movedim(1, -2), scaling, c.rope_adjacents).movedim(-2, 1);
  };
  return run(model, tokens, {}, [&](int64_t, const Heads& heads) {
    return attend(c, turned(heads.q), turned(heads.k), heads.v, ops::LowerTriangularMask());
  });
}

}  // namespace llama
