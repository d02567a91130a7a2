// FLOPs and bytes of a feed-forward layer's operators: two products forward, four backward. Without torch: see
// profiler/cost.h.
#pragma once

#include <numeric>
#include <vector>

#include "xformers/profiler/cost.h"

namespace xformers::ops {

// x [..., in], w1 [hidden, in], w2 [out, hidden]; for experts the first of each list, since all are of one size.
struct MlpSizes {
  int64_t rows = 0, in = 0, hidden = 0, out = 0;

  explicit MlpSizes(const profiler::Call& call) {
    const profiler::Shape &x = call.shape("x"), &w1 = call.shape("w1"), &w2 = call.shape("w2");
    if (x.empty() || w1.size() != 2 || w2.size() != 2) return;
    rows = profiler::rows(x);
    const std::vector<int64_t> counts = call.integers("counts");  // of rows that experts have; others are padding
    if (!counts.empty()) rows = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    in = x.back();
    hidden = w1[0];
    out = w2[0];
  }
  int64_t activations() const { return rows * (in + 2 * hidden + out); }
  int64_t weights() const { return hidden * (in + out); }
};

inline profiler::Cost mlp_cost(const profiler::Call& call) {
  const MlpSizes n(call);
  return {2 * n.rows * n.weights(), (n.activations() + n.weights()) * profiler::element_bytes(call.type("x")),
          std::string(call.type("x"))};
}

// The gradients of x and w1 come from the hidden layer's, which takes a product of its own.
inline profiler::Cost mlp_backward_cost(const profiler::Call& call) {
  const MlpSizes n(call);
  const bool dx = call.flag("need_dx", true), dw1 = call.flag("need_dw1", true), dw2 = call.flag("need_dw2", true);
  const bool dz = dx || dw1 || call.flag("need_db1", true);
  const int64_t inner = n.rows * n.in * n.hidden, outer = n.rows * n.hidden * n.out;
  const int64_t flops = 2 * ((dz ? outer : 0) + (dw2 ? outer : 0) + (dx ? inner : 0) + (dw1 ? inner : 0));
  return {flops, 2 * (n.activations() + n.weights()) * profiler::element_bytes(call.type("x")),
          std::string(call.type("x"))};
}

}  // namespace xformers::ops
