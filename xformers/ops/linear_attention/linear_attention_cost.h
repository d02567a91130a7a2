// FLOPs and bytes of linear attention. Without torch: see profiler/cost.h.
#pragma once

#include "xformers/profiler/cost.h"

namespace xformers::ops {

// Of the recurrence, whatever a kernel does in chunks: m features, w columns of omega (0 where features are given). A
// key costs its features, 2 K w, and what it adds to the state, 2 m V; a query the same for reading. Backward: S and D
// again, dq', dk' and dv, and both gradients through omega.
inline profiler::Cost linear_attention_cost_of(const profiler::Call& call, bool backward) {
  const profiler::Shape &q = call.shape("q"), &k = call.shape("k"), &v = call.shape("v"), &omega = call.shape("omega");
  if (q.size() != 4 || k.size() != 4 || v.size() != 4) return {};
  const bool made = omega.size() == 2;
  const int64_t dim = q[3], dim_v = v[3], w = made ? omega[1] : 0;
  const int64_t m = !made ? dim : call.flag("paired", false) ? 2 * w : w;
  const int64_t queries = q[0] * q[1] * q[2], keys = k[0] * k[1] * k[2];
  const int64_t features = 2 * dim * w, state = 2 * m * dim_v;
  const int64_t flops = backward ? queries * (2 * features + 2 * state) + keys * (2 * features + 3 * state)
                                 : (queries + keys) * (features + state);
  const int64_t inputs = queries * dim + keys * (dim + dim_v), outs = queries * dim_v;
  const int64_t moved = backward ? 2 * inputs + 2 * outs : inputs + outs;
  return {flops, moved * profiler::element_bytes(call.type("q")), std::string(call.type("q"))};
}

inline profiler::Cost linear_attention_cost(const profiler::Call& call) {
  return linear_attention_cost_of(call, false);
}
inline profiler::Cost linear_attention_backward_cost(const profiler::Call& call) {
  return linear_attention_cost_of(call, true);
}

}  // namespace xformers::ops
