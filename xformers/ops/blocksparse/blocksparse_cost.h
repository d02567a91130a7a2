// FLOPs and bytes of block-sparse products: those of the stored blocks. Without torch: see profiler/cost.h.
#pragma once

#include "xformers/profiler/cost.h"

namespace xformers::ops {

// a [batch, heads, m, k], column_indices [nnz] -> [batch, nnz, block, block]
inline profiler::Cost block_sdd_cost(const profiler::Call& call) {
  const profiler::Shape &a = call.shape("a"), &columns = call.shape("column_indices");
  if (a.size() != 4 || columns.size() != 1) return {};
  const int64_t block = call.integer("block", 0), elements = a[0] * columns[0] * block * block;
  return {2 * elements * a[3], profiler::bytes_of_inputs(call) + elements * profiler::element_bytes(call.type("a")),
          std::string(call.type("a"))};
}

// values [batch, nnz, block, block], b [batch, heads, k, n] -> [batch, heads, m, n]
inline profiler::Cost block_dsd_cost(const profiler::Call& call) {
  const profiler::Shape &values = call.shape("values"), &b = call.shape("b");
  if (values.size() != 4 || b.size() != 4) return {};
  const int64_t written = b[0] * b[1] * call.integer("m", 0) * b[3];
  return {2 * profiler::count(values) * b[3],
          profiler::bytes_of_inputs(call) + written * profiler::element_bytes(call.type("b")),
          std::string(call.type("b"))};
}

}  // namespace xformers::ops
