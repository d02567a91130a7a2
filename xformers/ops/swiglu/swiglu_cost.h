// FLOPs and bytes of SwiGLU's operators: three products forward, six backward. Without torch: see profiler/cost.h.
#pragma once

#include "xformers/profiler/cost.h"

namespace xformers::ops {

// x [..., in]; hidden and out as the weights say.
inline profiler::Cost swiglu_layer_cost(const profiler::Call& call, int64_t hidden) {
  const profiler::Shape &x = call.shape("x"), &w3 = call.shape("w3");
  if (x.empty() || w3.size() != 2) return {};
  const int64_t rows = profiler::rows(x), in = x.back(), out = w3[0];
  const int64_t size = profiler::element_bytes(call.type("x"));
  return {2 * rows * hidden * (2 * in + out), size * (rows * (in + out) + hidden * (2 * in + out)),
          std::string(call.type("x"))};
}

inline profiler::Cost swiglu_cost(const profiler::Call& call) {
  const profiler::Shape& w1 = call.shape("w1");
  return w1.size() == 2 ? swiglu_layer_cost(call, w1[0]) : profiler::Cost{};
}

inline profiler::Cost swiglu_packed_cost(const profiler::Call& call) {
  const profiler::Shape& w1w2 = call.shape("w1w2");
  return w1w2.size() == 3 ? swiglu_layer_cost(call, w1w2[1]) : profiler::Cost{};
}

// grad_out [..., out], x [..., in], x1x2 [rows, 2, hidden]
inline profiler::Cost swiglu_backward_cost(const profiler::Call& call) {
  const profiler::Shape &x = call.shape("x"), &w1 = call.shape("w1"), &w3 = call.shape("w3");
  if (x.empty() || w1.size() != 2 || w3.size() != 2) return {};
  const int64_t rows = profiler::rows(x), in = x.back(), hidden = w1[0], out = w3[0];
  const bool dx = call.flag("need_dx", true), dw1w2 = call.flag("need_dw1w2", true), dw3 = call.flag("need_dw3", true);
  const bool dh = dx || dw1w2 || call.flag("need_db1b2", true);  // the gradient of what w3 takes
  const int64_t outer = rows * hidden * out, inner = 2 * rows * hidden * in;
  const int64_t flops = 2 * ((dh ? outer : 0) + (dw3 ? outer : 0) + (dx ? inner : 0) + (dw1w2 ? inner : 0));
  const int64_t moved = rows * (in + out + 2 * hidden) + hidden * (2 * in + out) + (dx ? rows * in : 0) +
                        (dw1w2 ? 2 * hidden * in : 0) + (dw3 ? out * hidden : 0);
  return {flops, moved * profiler::element_bytes(call.type("x")), std::string(call.type("x"))};
}

// x [rows, in], w1 and w2 [hidden, in]
inline profiler::Cost dual_gemm_cost(const profiler::Call& call) {
  const profiler::Shape &x = call.shape("x"), &w1 = call.shape("w1");
  if (x.empty() || w1.size() != 2) return {};
  const int64_t rows = profiler::rows(x), in = x.back(), hidden = w1[0];
  const int64_t size = profiler::element_bytes(call.type("x"));
  return {4 * rows * in * hidden, size * (rows * (in + 3 * hidden) + 2 * hidden * in), std::string(call.type("x"))};
}

}  // namespace xformers::ops
