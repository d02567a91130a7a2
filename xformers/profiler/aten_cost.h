// FLOPs and bytes of LibTorch's own operators that multiply, by the same counts as torch.utils.flop_counter has.
#pragma once

#include "xformers/ops/attention/attention_cost.h"
#include "xformers/ops/common/product_cost.h"

namespace xformers::profiler::aten {

// [m, k] x [k, n], under the names that each operator gives them
inline Cost mm(const Call& call) { return ops::two_matrices_cost(call, "self", "mat2"); }
inline Cost addmm(const Call& call) { return ops::two_matrices_cost(call, "mat1", "mat2"); }
inline Cost mv(const Call& call) {
  const Shape& matrix = call.shape("self");
  return matrix.size() == 2 ? product_cost(matrix[0], matrix[1], 1, call.type("self")) : Cost{};
}

// [batch, m, k] x [batch, k, n]
inline Cost batched(const Call& call, const char* left, const char* right) {
  const Shape &a = call.shape(left), &b = call.shape(right);
  if (a.size() != 3 || b.size() != 3) return {};
  const Cost one = product_cost(a[1], a[2], b[2], call.type(left));
  return {a[0] * one.flops, a[0] * one.bytes, one.type};
}
inline Cost bmm(const Call& call) { return batched(call, "self", "mat2"); }
inline Cost baddbmm(const Call& call) { return batched(call, "batch1", "batch2"); }

// 2:4 sparse: only the half of the products that is kept. The compressed matrix has m rows of k / 2 values;
// cuSPARSELt's is one flat tensor whose values are followed by their positions, so that k comes from the dense one.
inline Cost sparse_semi_structured(const Call& call, const char* sparse, const char* dense) {
  const Shape &a = call.shape(sparse), &b = call.shape(dense);
  if (a.size() != 2 || b.size() != 2) return {};
  return product_cost(a[0], a[1], b[1], call.type(sparse));
}
inline Cost sparse_mm(const Call& call) { return sparse_semi_structured(call, "mat1", "mat2"); }
inline Cost cslt_sparse_mm(const Call& call) {
  const Shape &a = call.shape("compressed_A"), &b = call.shape("dense_B");
  if (a.empty() || b.size() != 2 || b[0] == 0) return {};
  const bool is_wide = element_bytes(call.type("compressed_A")) > 1;
  const int64_t m = count(a) * 16 / (is_wide ? 9 : 10) / b[0];  // 2 bits of position per value, of 2 bytes or of 1
  return product_cost(m, b[0] / 2, b[1], call.type("compressed_A"));
}

// Convolution: weight [out, in / groups, kernel...]; the result's places are known from the arguments.
inline int64_t places(const Call& call, const Shape& input, const Shape& weight) {
  const std::vector<int64_t> stride = call.integers("stride"), padding = call.integers("padding"),
                             dilation = call.integers("dilation");
  int64_t result = 1;
  for (size_t i = 2; i < input.size(); ++i) {
    const auto of = [&](const std::vector<int64_t>& list, int64_t otherwise) {
      return list.empty() ? otherwise : list[std::min(i - 2, list.size() - 1)];
    };
    result *= (input[i] + 2 * of(padding, 0) - of(dilation, 1) * (weight[i] - 1) - 1) / of(stride, 1) + 1;
  }
  return result;
}
inline Cost convolution_of(const Call& call, const char* input_name, int64_t products) {
  const Shape &input = call.shape(input_name), &weight = call.shape("weight");
  if (input.size() < 3 || weight.size() != input.size()) return {};
  const bool transposed = call.flag("transposed", false);
  int64_t size = 1;
  for (size_t i = 2; i < input.size(); ++i) size *= input[i];
  const int64_t each = transposed ? size : places(call, input, weight);
  const int64_t width = element_bytes(call.type(input_name));
  return {products * 2 * input[0] * each * count(weight),
          width * (count(input) + count(weight) + input[0] * each * (transposed ? input[1] : weight[0])),
          std::string(call.type(input_name))};
}
inline Cost convolution(const Call& call) { return convolution_of(call, "input", 1); }
inline Cost convolution_backward(const Call& call) {
  const std::string mask = call.find("output_mask") ? call.find("output_mask")->value : "";
  const auto wants = [&](size_t index) {  // "[True, True, False]"
    size_t at = 0;
    for (size_t i = 0; i < index && at != std::string::npos; ++i) at = mask.find(',', at + 1);
    const size_t end = at == std::string::npos ? at : mask.find(',', at + 1);
    const std::string item = at == std::string::npos ? "" : mask.substr(at, end == std::string::npos ? end : end - at);
    return mask.empty() || item.find("True") != std::string::npos || item.find("true") != std::string::npos ||
           item.find('1') != std::string::npos;
  };
  return convolution_of(call, "input", int64_t{wants(0)} + int64_t{wants(1)});
}

// query, key, value [batch, heads, seqlen, head_dim]. Causal counts half, as in the library's own operators.
inline Cost sdpa(const Call& call, bool backward) {
  const Shape &q = call.shape("query"), &k = call.shape("key"), &v = call.shape("value");
  if (q.size() != 4 || k.size() != 4 || v.size() != 4) return {};
  const ops::SeenKeys seen{-1, call.flag("is_causal", false) ? 0 : -1, true};
  const int64_t forward = q[0] * q[1] * ops::head_flops(q[2], k[2], q[3], v[3], seen);
  const int64_t moved = (backward ? 2 : 1) * (count(q) + count(k) + count(v) + q[0] * q[1] * q[2] * v[3]);
  return {backward ? ops::backward_flops(forward) : forward, moved * element_bytes(call.type("query")),
          std::string(call.type("query"))};
}
inline Cost sdpa_forward(const Call& call) { return sdpa(call, false); }
inline Cost sdpa_backward(const Call& call) { return sdpa(call, true); }

// query, key, value [batch, seqlen, heads, head_dim], or packed
inline Cost flash_forward(const Call& call) { return ops::flash_cost(call, false); }
inline Cost flash_backward(const Call& call) { return ops::flash_cost(call, true); }
inline Cost efficient_forward(const Call& call) { return ops::cutlass_cost(call, false); }
inline Cost efficient_backward(const Call& call) { return ops::cutlass_cost(call, true); }

// ---- operators that move memory ----
inline Cost pointwise(const Call& call) {  // the result is as large as what it is made of, spread over each other
  int64_t elements = 0, size = 0;
  for (const Argument& argument : call.arguments()) {
    for (const Shape& shape : argument.shapes) elements = std::max(elements, count(shape));
    if (!argument.shapes.empty()) size = std::max(size, element_bytes(argument.type));
  }
  return {0, bytes_of_inputs(call) + elements * size, std::string(call.type("self"))};
}
inline Cost copy(const Call& call) { return memory_cost_of(call, ""); }  // self is written, src is read
inline Cost in_place(const Call& call) { return memory_cost_of(call, "self"); }
inline Cost fill(const Call& call) { return memory_cost_of(call, ""); }
inline Cost reduction(const Call& call) { return memory_cost_of(call, ""); }  // the result is small

}  // namespace xformers::profiler::aten
