#include "benchmarks/blocks/rows.h"

#include <ATen/core/grad_mode.h>

#include <regex>

#include "benchmarks/blocks/row_builder.h"
#include "xformers/ops/indexing/indexing.h"
#include "xformers/ops/norm/norm.h"
#include "xformers/ops/rope/rope.h"
#include "xformers/ops/swiglu/swiglu.h"
#include "xformers/ops/tiled_matmul/tiled_matmul.h"

namespace xformers::bench {
namespace {

void add_norms(std::vector<BlockRow>& rows, const Setting& s) {
  const int64_t n = s.rows, width = 4096;
  const double one = s.bytes(static_cast<double>(n * width));
  const auto inputs = [=] { return Tensors{s.random({n, width}), s.random({width})}; };
  add(
      rows, s, "rms_norm " + times(n, width), 2 * one, 3 * one, inputs,
      [](const Tensors& t) { return ops::rms_norm(t[0], t[1]); },
      [](const Tensors& t) { return at::rms_norm(t[0], {t[0].size(-1)}, t[1], 1e-6); });
  add(
      rows, s, "rms_norm_add " + times(n, width), 4 * one, -1,
      [=] { return Tensors{s.random({n, width}), s.random({n, width}), s.random({width})}; },
      [](const Tensors& t) { return ops::rms_norm_add(t[0], t[1], t[2]); },
      [](const Tensors& t) { return at::rms_norm(t[0].add_(t[1]), {t[0].size(-1)}, t[2], 1e-6); });
  add(
      rows, s, "layer_norm " + times(n, width), 2 * one, 3 * one,
      [=] { return Tensors{s.random({n, width}), s.random({width}), s.random({width})}; },
      [](const Tensors& t) { return ops::layer_norm(t[0], t[1], t[2], 1e-5); },
      [](const Tensors& t) { return at::layer_norm(t[0], {t[0].size(-1)}, t[1], t[2], 1e-5); });
}

void add_indexing(std::vector<BlockRow>& rows, const Setting& s) {
  const int64_t n = s.rows, width = 4096, picked = n * 6 / 10;
  const double part = s.bytes(static_cast<double>(picked * width)), whole = s.bytes(static_cast<double>(n * width));
  const Tensor index = at::randperm(n).narrow(0, 0, picked).clone();
  add(
      rows, s, "index_select_cat " + times(n, width), 2 * part, part + whole,
      [=] { return Tensors{s.random({n, width})}; },
      [=](const Tensors& t) { return ops::index_select_cat({t[0]}, {index}); },
      [=](const Tensors& t) { return at::cat({t[0].index({index}).flatten()}); });
  // Backward reads the gradient and the source and writes the gradients of source and scaling.
  add(
      rows, s, "scaled_index_add " + times(n, width), 3 * part, 3 * part,
      [=] { return Tensors{s.random({n, 1, width}), s.random({picked, 1, width}), s.random({width})}; },
      [=](const Tensors& t) {
        return ops::scaled_index_add(at::GradMode::is_enabled() ? t[0].clone() : t[0], index, t[1], t[2], 0.7);
      },
      [=](const Tensors& t) {
        return (at::GradMode::is_enabled() ? t[0].clone() : t[0]).index_add_(0, index, t[1] * t[2], 0.7);
      });
}

Tensor eager_turn(const Tensor& x, const Tensor& angles) {  // adjacent pairs, as model code writes it
  const Tensor pairs = at::view_as_complex(x.to(at::kFloat).unflatten(-1, {-1, 2}));
  return at::view_as_real(pairs * angles).flatten(-2).to(x.scalar_type());
}

void add_rope(std::vector<BlockRow>& rows, const Setting& s) {
  const int64_t tokens = s.rows, heads = 32, kv_heads = 8, dim = 128;
  const auto inputs = [=] {
    return Tensors{s.random({1, tokens, heads, dim}), s.random({1, tokens, kv_heads, dim}),
                   s.random({1, tokens, kv_heads, dim}), s.random({1, tokens + 64, kv_heads, dim}),
                   s.random({1, tokens + 64, kv_heads, dim})};
  };
  const auto offsets = [](int64_t a) { return at::tensor({int64_t{0}, a}, at::kInt); };
  const Tensor q_starts = offsets(tokens), k_starts = offsets(tokens + 64), length = q_starts.narrow(0, 1, 1).clone();
  const Tensor frequencies = at::pow(10000.0, at::arange(0, dim, 2, at::kFloat) / -dim);
  const Tensor angles = at::outer(at::arange(tokens, at::kFloat), frequencies);
  const Tensor turns = at::polar(at::ones_like(angles), angles).unsqueeze(1);
  const double bytes = s.bytes(2.0 * static_cast<double>(tokens * (heads + 2 * kv_heads) * dim));
  add(
      rows, s, "rope_padded " + std::to_string(tokens) + " tokens", bytes, -1, inputs,
      [=](const Tensors& t) { return ops::rope_padded(t[0], t[1], t[2], t[3], t[4], q_starts, k_starts, length); },
      [=](const Tensors& t) {
        t[3].narrow(1, 0, tokens).copy_(eager_turn(t[1], turns));
        t[4].narrow(1, 0, tokens).copy_(t[2]);
        return eager_turn(t[0], turns);
      });
  const double one = s.bytes(2.0 * static_cast<double>(tokens * heads * dim));
  const Tensor cos = at::cos(at::cat({angles, angles}, -1)).to(s.dtype),
               sin = at::sin(at::cat({angles, angles}, -1)).to(s.dtype);
  add(
      rows, s, "rotary " + std::to_string(tokens) + " tokens", one, one,
      [=] { return Tensors{s.random({1, heads, tokens, dim})}; }, [](const Tensors& t) { return ops::rotary(t[0]); },
      [=](const Tensors& t) {
        const auto halves = t[0].chunk(2, -1);
        return t[0] * cos + at::cat({-halves[1], halves[0]}, -1) * sin;
      });
}

void add_swiglu(std::vector<BlockRow>& rows, const Setting& s, bool quick) {
  const int64_t n = s.rows, hidden = 2736;
  const double one = s.bytes(static_cast<double>(n * hidden));
  add(
      rows, s, "silu_gate " + times(n, hidden), 3 * one, 6 * one,
      [=] { return Tensors{s.random({n, hidden}), s.random({n, hidden})}; },
      [](const Tensors& t) { return ops::silu_gate(t[0], t[1]); },
      [](const Tensors& t) { return at::silu(t[0]) * t[1]; });
  const int64_t m = quick ? 256 : 1024, in = quick ? 512 : 1536;
  add(
      rows, s, "swiglu " + times(m, in) + " -> " + std::to_string(hidden), 0, 0,
      [=] {
        return Tensors{s.random({m, in}), s.random({2, hidden, in}) * 0.02, s.random({2, hidden}),
                       s.random({in, hidden}) * 0.02, s.random({in})};
      },
      [](const Tensors& t) { return ops::swiglu_packed(t[0], t[1], t[2], t[3], t[4]); },
      [](const Tensors& t) {
        const auto w = t[1].unbind(0), b = t[2].unbind(0);
        return at::linear(at::silu(at::linear(t[0], w[0], b[0])) * at::linear(t[0], w[1], b[1]), t[3], t[4]);
      });
  const int64_t k = quick ? 256 : 512;
  add(
      rows, s, "tiled_matmul 3 x 3 x 3 tiles of " + std::to_string(k), 0, -1,
      [=] { return Tensors{s.random({3 * k, 3 * k}), s.random({3 * k, 3 * k})}; },
      [=](const Tensors& t) {
        ops::TileGrid a, b;
        for (const Tensor& row : t[0].split(k)) a.push_back(row.split(k, 1));
        for (const Tensor& row : t[1].split(k)) b.push_back(row.split(k, 1));
        return ops::tiled_matmul(a, b)[2][2];
      },
      [](const Tensors& t) { return at::mm(t[0], t[1]); });
}

}  // namespace

std::vector<BlockRow> block_rows(const std::string& filter, bool quick) {
  std::vector<BlockRow> all, result;
  for (const auto& [dtype, name] :
       {std::pair{at::kFloat, "fp32"}, std::pair{at::kBFloat16, "bf16"}, std::pair{at::kHalf, "fp16"}}) {
    const Setting setting{dtype, name, quick ? 2048 : 16384};
    add_norms(all, setting);
    add_indexing(all, setting);
    add_rope(all, {dtype, name, quick ? 1024 : 4096});
    add_swiglu(all, setting, quick);
    add_fused(all, setting, quick);
  }
  const std::regex wanted(filter);
  for (BlockRow& row : all) {
    if (std::regex_search(row.name, wanted)) result.push_back(std::move(row));
  }
  return result;
}

}  // namespace xformers::bench
