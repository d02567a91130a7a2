#include "xformers/ops/attention/contracts/flops.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <vector>

#include "xformers/kernels/base/check.h"

namespace xformers::ops {
namespace {

// Its numbers; empty for a tensor without data (fake tensors of tracing).
std::vector<int64_t> numbers_of(const std::optional<at::Tensor>& tensor) {
  if (!tensor || tensor->is_meta() || !tensor->has_storage() || tensor->key_set().has(c10::DispatchKey::Python) ||
      !tensor->storage().data()) {
    return {};
  }
  const at::Tensor on_host = tensor->to(at::kCPU, at::kLong).contiguous();
  const int64_t* data = on_host.const_data_ptr<int64_t>();
  return {data, data + on_host.numel()};
}

std::vector<int64_t> differences(const std::vector<int64_t>& offsets) {
  std::vector<int64_t> lengths;
  for (size_t i = 1; i < offsets.size(); ++i) lengths.push_back(offsets[i] - offsets[i - 1]);
  return lengths;
}

}  // namespace

int64_t head_flops(int64_t seqlen_q, int64_t seqlen_k, int64_t head_dim, int64_t head_dim_v, bool causal) {
  const int64_t per_pair = head_dim + head_dim_v;
  if (!causal) return 2 * seqlen_q * seqlen_k * per_pair;
  const int64_t before = std::max<int64_t>(seqlen_k - seqlen_q, 0);  // keys that every query sees
  const int64_t square = std::min(seqlen_q, seqlen_k);
  return (2 * seqlen_q * before + square * square) * per_pair;
}

int64_t attention_flops(at::IntArrayRef query, at::IntArrayRef key, at::IntArrayRef value, bool causal, bool backward,
                        bool heads_first, const PackedLengths& lengths) {
  const size_t ndim = query.size();
  if (ndim < 3 || ndim > 5 || key.size() != ndim || value.size() != ndim || (heads_first && ndim != 4)) {
    fail({.where = "attention_flops",
          .name = "the number of dimensions of query, key and value",
          .got = c10::str(ndim, ", ", key.size(), " and ", value.size()),
          .expected = "3, 4 or 5 for all, 4 where heads come first",
          .fix = "pass the sizes of query, key and value"});
  }
  const size_t row_dim = heads_first ? 2 : 1;
  const int64_t seqlen_q = query[row_dim], seqlen_k = key[row_dim], head_dim = query.back(), head_dim_v = value.back();
  int64_t heads = 1;  // batch and head dimensions
  for (size_t dim = 0; dim + 1 < ndim; ++dim) heads *= dim == row_dim ? 1 : query[dim];

  int64_t per_head = 0;
  if (!lengths.cu_seqlens_q) {
    per_head = head_flops(seqlen_q, seqlen_k, head_dim, head_dim_v, causal);
  } else {
    const std::vector<int64_t> queries = differences(numbers_of(lengths.cu_seqlens_q));
    const std::vector<int64_t> keys =
        lengths.seqused_k ? numbers_of(lengths.seqused_k) : differences(numbers_of(lengths.cu_seqlens_k));
    if (queries.empty() || keys.size() < queries.size()) {  // unknown: equal lengths
      const int64_t sequences = std::max<int64_t>(lengths.cu_seqlens_q->size(0) - 1, 1);
      per_head = sequences * head_flops(seqlen_q / sequences, seqlen_k / sequences, head_dim, head_dim_v, causal);
    } else {
      for (size_t i = 0; i < queries.size(); ++i) {
        per_head += head_flops(queries[i], keys[i], head_dim, head_dim_v, causal);
      }
    }
  }
  const int64_t forward = heads * per_head;
  return backward ? forward * 5 / 2 : forward;
}

}  // namespace xformers::ops
