#include "xformers/kernels/cpu/attention/uncovered.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "xformers/kernels/cpu/attention/band.h"

namespace xformers::cpu {
namespace {

// 1 for each row of a packed dimension that belongs to no sequence.
std::vector<char> uncovered_rows(const AttentionShape& shape, const SeqLayout& seq, bool keys) {
  std::vector<char> uncovered(keys ? shape.seqlen_k : shape.seqlen_q, 1);
  for (int64_t s = 0; s < seq.num_sequences; ++s) {
    const Sequence sequence = sequence_at(shape, seq, s);
    const int64_t begin = keys ? sequence.k_begin : sequence.q_begin,
                  length = keys ? sequence.seqlen_k : sequence.seqlen_q;
    std::fill_n(uncovered.begin() + begin, length, 0);
  }
  return uncovered;
}

template <class Visit>  // visit(group, head)
void for_each_head(const AttentionShape& shape, const Visit& visit) {
  for (int64_t group = 0; group < shape.num_groups; ++group) {
    for (int64_t head = 0; head < shape.heads_per_group; ++head) visit(group, head);
  }
}

void zero_rows(const HeadsTensor& tensor, const AttentionShape& shape, int64_t row_bytes, size_t element,
               const std::vector<char>& rows) {
  for (int64_t row = 0; row < static_cast<int64_t>(rows.size()); ++row) {
    if (!rows[row]) continue;
    for_each_head(shape, [&](int64_t group, int64_t head) {
      std::memset(static_cast<char*>(tensor.data) + tensor.offset(0, row, group, head) * element, 0, row_bytes);
    });
  }
}

void set_rows(const RowTensor& tensor, const AttentionShape& shape, double value, const std::vector<char>& rows) {
  if (!tensor.data) return;
  for_each_head(shape, [&](int64_t group, int64_t head) {
    const int64_t offset = tensor.offset(0, group, head, 0);
    for (int64_t row = 0; row < static_cast<int64_t>(rows.size()); ++row) {
      if (!rows[row]) continue;
      if (shape.dtype == DType::kFloat64) {
        static_cast<double*>(tensor.data)[offset + row] = value;
      } else {
        static_cast<float*>(tensor.data)[offset + row] = static_cast<float>(value);
      }
    }
  });
}

void zero_dbias(const AttentionBwdParams& params, const Threads& threads) {
  const AttentionShape& shape = params.shape;
  const size_t bytes = size_of(shape.dtype);
  for_each_task(threads, shape.batch * shape.num_heads(), [&](int64_t task, int) {
    const int64_t head = task % shape.heads_per_group, group = task / shape.heads_per_group % shape.num_groups;
    for (int64_t q = 0; q < shape.seqlen_q; ++q) {
      char* row = static_cast<char*>(params.dbias.data) +
                  params.dbias.offset(task / shape.num_heads(), group, head, q, 0) * bytes;
      if (params.dbias.k_stride == 1) {
        std::memset(row, 0, shape.seqlen_k * bytes);
      } else {
        for (int64_t k = 0; k < shape.seqlen_k; ++k) std::memset(row + k * params.dbias.k_stride * bytes, 0, bytes);
      }
    }
  });
}

}  // namespace

void clear_uncovered(const AttentionFwdParams& params) {
  if (!params.seq.packed()) return;
  const std::vector<char> rows = uncovered_rows(params.shape, params.seq, false);
  const size_t element = params.wide_out && params.shape.dtype != DType::kFloat64 ? 4 : size_of(params.shape.dtype);
  zero_rows(params.out, params.shape, params.shape.head_dim_v * element, element, rows);
  set_rows(params.lse, params.shape, -std::numeric_limits<double>::infinity(), rows);
  set_rows(params.lse_low, params.shape, 0, rows);
}

void clear_uncovered(const AttentionBwdParams& params, const Threads& threads) {
  const AttentionShape& shape = params.shape;
  if (params.seq.packed()) {
    const size_t element = size_of(shape.dtype);
    const std::vector<char> queries = uncovered_rows(shape, params.seq, false),
                            keys = uncovered_rows(shape, params.seq, true);
    zero_rows(params.dq, shape, shape.head_dim * element, element, queries);
    zero_rows(params.dk, shape, shape.head_dim * element, element, keys);
    zero_rows(params.dv, shape, shape.head_dim_v * element, element, keys);
  }
  if (params.dbias.data && !params.seq.packed()) zero_dbias(params, threads);
}

}  // namespace xformers::cpu
