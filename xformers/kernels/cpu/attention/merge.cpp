#include "xformers/kernels/cpu/attention/merge.h"

#include <algorithm>
#include <vector>

#include "xformers/kernels/base/half.h"
#include "xformers/kernels/cpu/merge/shares.h"

namespace xformers::cpu {
namespace {

// T: of out; C: of the partial results and lse.
template <class T, class C>
void merge_rows(const AttentionFwdParams& params, const ForwardMerge& merge, const ForwardPartials<C>& partials) {
  const int64_t dim_v = params.shape.head_dim_v, rows = merge.num_rows(),
                num_queries = merge.queries.end - merge.queries.begin;
  const Sequence sequence = sequence_at(params.shape, params.seq, merge.sequence);
  std::vector<C> sum(dim_v), shares(merge.num_splits);
  for (int64_t r = 0; r < rows; ++r) {
    const auto partial = [&](int64_t split) { return merge.partial_row + split * rows + r; };
    const auto statistics = [&](int64_t split) {
      return PartStatistics<C>{partials.row_max[partial(split)], partials.row_sum[partial(split)]};
    };
    MergedLse<C> merged = merge_shares(merge.num_splits, partials.factor, statistics, shares.data());
    const int64_t num_heads = merge.head_end - merge.head_begin, head = merge.head_begin + r / num_queries % num_heads;
    const int64_t group = merge.group_begin + r / num_queries / num_heads,
                  row = sequence.q_begin + merge.queries.begin + r % num_queries;
    if (const HeadNumbers& sinks = params.mods.sinks; sinks.data) {
      const C sink = static_cast<const C*>(sinks.data)[sinks.offset(sequence.index, group, head)];
      merged = add_sink(merged, sink, merge.num_splits, shares.data());
    }
    std::fill(sum.begin(), sum.end(), C(0));
    for (int64_t s = 0; s < merge.num_splits; ++s) {
      if (!statistics(s).saw_keys()) continue;
      const C* const from = partials.out + partial(s) * dim_v;
      for (int64_t d = 0; d < dim_v; ++d) sum[d] += shares[s] * from[d];
    }
    T* out = static_cast<T*>(params.out.data) + params.out.offset(sequence.batch, row, group, head);
    for (int64_t d = 0; d < dim_v; ++d) out[d] = from_compute<T>(sum[d]);
    const auto store = [&](const RowTensor& to, C value) {
      if (to.data) static_cast<C*>(to.data)[to.offset(sequence.batch, group, head, row)] = value;
    };
    store(params.lse, merged.lse);
    store(params.lse_low, merged.low);
  }
}

}  // namespace

void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge, const ForwardPartials<float>& partials) {
  if (params.wide_out) return merge_rows<float>(params, merge, partials);
  switch (params.shape.dtype) {
    case DType::kFloat32: return merge_rows<float>(params, merge, partials);
    case DType::kBFloat16: return merge_rows<BFloat16>(params, merge, partials);
    case DType::kFloat16: return merge_rows<Float16>(params, merge, partials);
    case DType::kFloat64: return;  // has its own overload
  }
}

void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge,
                  const ForwardPartials<double>& partials) {
  merge_rows<double>(params, merge, partials);
}

}  // namespace xformers::cpu
