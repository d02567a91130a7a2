#include "xformers/ops/attention/contracts/flops.h"

#include <c10/util/StringUtil.h>

#include <vector>

#include "xformers/kernels/base/check.h"
#include "xformers/ops/attention/attention_cost.h"

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

}  // namespace

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

  Packed packed;
  if (lengths.cu_seqlens_q) {
    packed.sequences = lengths.cu_seqlens_q->size(0) - 1;
    packed.seqlens_q = lengths_between(numbers_of(lengths.cu_seqlens_q));
    packed.seqlens_k =
        lengths.seqused_k ? numbers_of(lengths.seqused_k) : lengths_between(numbers_of(lengths.cu_seqlens_k));
  }
  const SeenKeys seen{.window_left = -1, .window_right = causal ? 0 : -1, .bottom_right = true};
  const int64_t forward = heads * packed_head_flops(seqlen_q, seqlen_k, head_dim, head_dim_v, seen, packed);
  return backward ? backward_flops(forward) : forward;
}

}  // namespace xformers::ops
