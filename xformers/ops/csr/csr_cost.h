// FLOPs and bytes of products of sparse rows: one multiplication and addition per value and column of the dense matrix.
// Without torch: see profiler/cost.h.
#pragma once

#include <algorithm>

#include "xformers/profiler/cost.h"

namespace xformers::ops {

// a [batch, rows, depth], column_indices [nnz] -> [batch, nnz]
inline profiler::Cost sddmm_cost(const profiler::Call& call) {
  const profiler::Shape &a = call.shape("a"), &columns = call.shape("column_indices");
  if (a.size() != 3 || columns.size() != 1) return {};
  const int64_t values = a[0] * columns[0];
  return {2 * values * a[2], profiler::bytes_of_inputs(call) + values * profiler::element_bytes(call.type("a")),
          std::string(call.type("a"))};
}

// b [batch, columns, width], values [batch, nnz] -> [batch, m, width]; either's batch may be 1.
inline profiler::Cost spmm_cost(const profiler::Call& call) {
  const profiler::Shape &b = call.shape("b"), &values = call.shape("values");
  if (b.size() != 3 || values.size() != 2) return {};
  const int64_t batch = std::max(b[0], values[0]), written = batch * call.integer("m", 0) * b[2];
  return {2 * batch * values[1] * b[2],
          profiler::bytes_of_inputs(call) + written * profiler::element_bytes(call.type("b")),
          std::string(call.type("b"))};
}

}  // namespace xformers::ops
