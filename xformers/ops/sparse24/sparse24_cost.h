// FLOPs and bytes of the operators of 2:4 sparsity. FLOPs are those of a dense product: what is computed, however it
// is. Without torch: see profiler/cost.h.
#pragma once

#include "xformers/ops/common/product_cost.h"

namespace xformers::ops {

// A matrix packed in kOrientations: values (half), metadata (a bit for each element); both ways also the mask (a bit).
template <int kOrientations>
profiler::Cost sparse24_pack_cost(const profiler::Call& call) {
  const char* const name = call.has_tensor("input") ? "input" : "x";
  const int64_t elements = profiler::count(call.shape(name)), size = profiler::element_bytes(call.type(name));
  profiler::Cost cost = profiler::memory_cost_of(call, "");
  cost.bytes += kOrientations * (elements / 2 * size + elements / 8) + (kOrientations > 1 ? elements / 8 : 0);
  return cost;
}

// packed [rows, cols], b [cols, n]
inline profiler::Cost sparse24_product_cost(const profiler::Call& call) {
  const profiler::Shape& b = call.shape("b");
  if (b.size() != 2) return {};
  const int64_t rows = call.integer("rows", 0), size = profiler::element_bytes(call.type("b"));
  profiler::Cost cost = profiler::memory_cost_of(call, "");
  cost.flops = rows * b[0] * b[1];
  cost.bytes += rows * b[1] * size;
  cost.type = std::string(call.type("b"));
  return cost;
}

// a [rows, k / 2], b [k, n]
inline profiler::Cost sparse24_gemm_cost(const profiler::Call& call) {
  const profiler::Shape &a = call.shape("a"), &b = call.shape("b");
  if (a.size() != 2 || b.size() != 2) return {};
  profiler::Cost cost = profiler::memory_cost_of(call, "");
  cost.flops = a[0] * b[0] * b[1];
  cost.bytes += a[0] * b[1] * profiler::element_bytes(call.type("b"));
  return cost;
}

// x or z [..., in], weight [out, in]
inline profiler::Cost sparse24_linear_cost(const profiler::Call& call) {
  const char* const name = call.has_tensor("x") ? "x" : "z";
  const profiler::Shape &x = call.shape(name), &weight = call.shape("weight");
  if (x.empty() || weight.size() != 2) return {};
  profiler::Cost cost = profiler::product_cost(profiler::rows(x), x.back(), weight[0], call.type(name));
  cost.flops /= 2;
  return cost;
}

}  // namespace xformers::ops
