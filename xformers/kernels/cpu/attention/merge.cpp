#include "xformers/kernels/cpu/attention/merge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "xformers/kernels/base/half.h"

namespace xformers::cpu {
namespace {

// T: of out; C: of the partial results and lse.
template <class T, class C>
void merge_rows(const AttentionFwdParams& params, const ForwardMerge& merge, const C* partial_out,
                const C* partial_lse) {
  constexpr C kMinusInfinity = -std::numeric_limits<C>::infinity();
  const int64_t dim_v = params.shape.head_dim_v, rows = merge.num_rows(),
                num_queries = merge.queries.end - merge.queries.begin;
  const Sequence sequence = sequence_at(params.shape, params.seq, merge.sequence);
  std::vector<C> sum(dim_v);
  for (int64_t r = 0; r < rows; ++r) {
    C highest = kMinusInfinity, total = 0;
    for (int64_t s = 0; s < merge.num_splits; ++s)
      highest = std::max(highest, partial_lse[merge.partial_row + s * rows + r]);
    std::fill(sum.begin(), sum.end(), C(0));
    for (int64_t s = 0; s < merge.num_splits; ++s) {
      const int64_t partial = merge.partial_row + s * rows + r;
      if (partial_lse[partial] == kMinusInfinity) continue;
      const C weight = std::exp(partial_lse[partial] - highest);
      total += weight;
      for (int64_t d = 0; d < dim_v; ++d) sum[d] += weight * partial_out[partial * dim_v + d];
    }
    const int64_t num_heads = merge.head_end - merge.head_begin, head = merge.head_begin + r / num_queries % num_heads;
    const int64_t group = merge.group_begin + r / num_queries / num_heads,
                  query = merge.queries.begin + r % num_queries;
    T* out = static_cast<T*>(params.out.data) + sequence.batch * params.out.batch_stride +
             (sequence.q_begin + query) * params.out.seq_stride + group * params.out.group_stride +
             head * params.out.head_stride;
    for (int64_t d = 0; d < dim_v; ++d) out[d] = from_compute<T>(total == C(0) ? C(0) : sum[d] / total);
    if (params.lse.data) {
      C* lse = static_cast<C*>(params.lse.data) + sequence.batch * params.lse.batch_stride +
               group * params.lse.group_stride + head * params.lse.head_stride + sequence.q_begin + query;
      *lse = total == C(0) ? kMinusInfinity : highest + std::log(total);
    }
  }
}

}  // namespace

void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge, const float* partial_out,
                  const float* partial_lse) {
  if (params.wide_out) return merge_rows<float>(params, merge, partial_out, partial_lse);
  switch (params.shape.dtype) {
    case DType::kFloat32: return merge_rows<float>(params, merge, partial_out, partial_lse);
    case DType::kBFloat16: return merge_rows<BFloat16>(params, merge, partial_out, partial_lse);
    case DType::kFloat16: return merge_rows<Float16>(params, merge, partial_out, partial_lse);
    case DType::kFloat64: return;  // has its own overload
  }
}

void merge_splits(const AttentionFwdParams& params, const ForwardMerge& merge, const double* partial_out,
                  const double* partial_lse) {
  merge_rows<double>(params, merge, partial_out, partial_lse);
}

}  // namespace xformers::cpu
