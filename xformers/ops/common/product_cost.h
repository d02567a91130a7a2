// FLOPs and bytes of the operators that are one matrix product. Without torch: see profiler/cost.h.
#pragma once

#include <numeric>

#include "xformers/profiler/cost.h"

namespace xformers::ops {

// a [m, k], b [k, n]
inline profiler::Cost two_matrices_cost(const profiler::Call& call, const char* left, const char* right) {
  const profiler::Shape &a = call.shape(left), &b = call.shape(right);
  if (a.size() != 2 || b.size() != 2) return {};
  return profiler::product_cost(a[0], a[1], b[1], call.type(left));
}

inline profiler::Cost product_op_cost(const profiler::Call& call) { return two_matrices_cost(call, "a", "b"); }

// x [..., in], weight [out, in]
inline profiler::Cost fused_linear_cost(const profiler::Call& call) {
  const profiler::Shape &x = call.shape("x"), &weight = call.shape("weight");
  if (x.empty() || weight.size() != 2) return {};
  return profiler::product_cost(profiler::rows(x), x.back(), weight[0], call.type("x"));
}

// Sizes of the tiles along each dimension: ms, ns, ks.
inline profiler::Cost tiled_matmul_cost(const profiler::Call& call) {
  const auto total = [&](const char* name) {
    const std::vector<int64_t> sizes = call.integers(name);
    return std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  };
  return profiler::product_cost(total("ms"), total("ks"), total("ns"), call.type("a"));
}

}  // namespace xformers::ops
