#include "benchmarks/blocks/row_builder.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"
#include "xformers/ops/softmax/softmax.h"

namespace xformers::bench {
namespace {

void add_softmax(std::vector<BlockRow>& rows, const Setting& s) {
  const int64_t heads = s.rows / 256, seqlen = 1024;
  const double one = s.bytes(static_cast<double>(heads * seqlen * seqlen));
  const std::string size = std::to_string(heads) + " x " + times(seqlen, seqlen);
  const auto inputs = [=] { return Tensors{s.random({heads, seqlen, seqlen})}; };
  add(
      rows, s, "softmax " + size, 2 * one, 3 * one, inputs, [](const Tensors& t) { return ops::softmax(t[0]); },
      [](const Tensors& t) { return at::softmax(t[0], -1); });
  add(
      rows, s, "log_softmax " + size, 2 * one, 3 * one, inputs, [](const Tensors& t) { return ops::log_softmax(t[0]); },
      [](const Tensors& t) { return at::log_softmax(t[0], -1); });
  const Tensor hidden = at::ones({seqlen, seqlen}, at::kBool).triu(1);
  add(
      rows, s, "softmax causal " + size, 1.5 * one, 2 * one, inputs,
      [](const Tensors& t) { return ops::softmax(t[0], std::nullopt, true); },
      [=](const Tensors& t) { return at::softmax(t[0].masked_fill(hidden, -INFINITY), -1); });
}

void add_dropout(std::vector<BlockRow>& rows, const Setting& s) {
  const int64_t n = s.rows, width = 4096;
  const double one = s.bytes(static_cast<double>(n * width));
  const auto two = [=] { return Tensors{s.random({n, width}), s.random({width})}; };
  const auto three = [=] { return Tensors{s.random({n, width}), s.random({width}), s.random({n, width})}; };
  add(
      rows, s, "bias gelu " + times(n, width), 2 * one, 3 * one, two,
      [](const Tensors& t) { return ops::fused_dropout(t[0], 0, t[1], Activation::kGelu); },
      [](const Tensors& t) { return at::gelu(t[0] + t[1], "tanh"); });
  add(
      rows, s, "bias squared_relu dropout " + times(n, width), 2 * one, 3 * one, two,
      [](const Tensors& t) { return ops::fused_dropout(t[0], 0.1, t[1], Activation::kSquaredRelu); },
      [](const Tensors& t) { return at::dropout(at::relu(t[0] + t[1]).square(), 0.1, /*train=*/true); });
  add(
      rows, s, "bias dropout residual " + times(n, width), 3 * one, 2 * one, three,
      [](const Tensors& t) { return ops::fused_dropout(t[0], 0.1, t[1], Activation::kNone, t[2]); },
      [](const Tensors& t) { return at::dropout(t[0] + t[1], 0.1, /*train=*/true) + t[2]; });
}

void add_linear(std::vector<BlockRow>& rows, const Setting& s, bool quick) {
  const int64_t m = quick ? 256 : 1024, in = quick ? 512 : 1024, hidden = 4 * in;
  add(
      rows, s, "fused_linear gelu " + times(m, in) + " -> " + std::to_string(hidden), 0, 0,
      [=] { return Tensors{s.random({m, in}), s.random({hidden, in}) * 0.02, s.random({hidden})}; },
      [](const Tensors& t) { return ops::fused_linear(t[0], t[1], t[2], Activation::kGelu); },
      [](const Tensors& t) { return at::gelu(at::linear(t[0], t[1], t[2]), "tanh"); });
  add(
      rows, s, "fused mlp gelu dropout " + times(m, in) + " x 4", 0, 0,
      [=] {
        return Tensors{s.random({m, in}), s.random({hidden, in}) * 0.02, s.random({hidden}),
                       s.random({in, hidden}) * 0.02, s.random({in})};
      },
      [](const Tensors& t) {
        const Tensor h = ops::fused_dropout(at::linear(t[0], t[1]), 0.1, t[2], Activation::kGelu);
        return ops::fused_dropout(at::linear(h, t[3]), 0.1, t[4]);
      },
      [](const Tensors& t) {
        const Tensor h = at::dropout(at::gelu(at::linear(t[0], t[1], t[2]), "tanh"), 0.1, /*train=*/true);
        return at::dropout(at::linear(h, t[3], t[4]), 0.1, /*train=*/true);
      });
}

}  // namespace

void add_fused(std::vector<BlockRow>& rows, const Setting& s, bool quick) {
  add_softmax(rows, s);
  add_dropout(rows, s);
  add_linear(rows, s, quick);
}

}  // namespace xformers::bench
