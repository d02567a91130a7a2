#include "xformers/kernels/cuda/merge/alike_args.h"

namespace xformers::cuda {
namespace {

// Strides in units of `unit` elements; false: places don't fit into 32 bits.
bool to_strides(const HeadsTensor& t, const MergeShape& s, int64_t unit, AlikeStrides& to) {
  int64_t last = 0;
  const auto stride = [&](int64_t size, int64_t elements) {
    if (size <= 1) return 0u;
    last += (size - 1) * (elements / unit);
    return static_cast<uint32_t>(elements / unit);
  };
  to = {stride(s.batch, t.batch_stride), stride(s.seqlen, t.seq_stride), stride(s.num_groups, t.group_stride),
        stride(s.heads_per_group, t.head_stride)};
  return last >= 0 && last < int64_t{1} << 32;
}

bool all_strides(const MergeArgs& args, AlikeArgs& alike) {
  const MergeShape& s = args.shape;
  const int64_t unit = 16 / static_cast<int64_t>(size_of(s.dtype));
  return to_strides(args.few_parts.at[0].out, s, unit, alike.part_out) &&
         to_strides(args.few_parts.at[0].lse, s, 1, alike.part_lse) && to_strides(args.out, s, unit, alike.out) &&
         to_strides(args.lse, s, 1, alike.lse) && to_strides(args.few_grads.at[0].out, s, unit, alike.grad_out) &&
         to_strides(args.few_grads.at[0].lse, s, 1, alike.grad_lse);
}

}  // namespace

bool lie_alike(const MergeArgs& args, AlikeArgs& alike) {
  const MergeShape& s = args.shape;
  const bool backward = args.few_grads.at[0].out.data != nullptr;
  const int64_t vectors = s.head_dim * static_cast<int64_t>(size_of(s.dtype)) / 16;
  if (!args.aligned || !args.same_strides || s.lse_dtype != DType::kFloat32 || s.dtype == DType::kFloat64) return false;
  if (s.out_dtype != s.dtype && (backward || s.dtype != DType::kFloat32)) return false;
  if (s.out_dtype == DType::kFloat64 || vectors < kLeastVectors) return false;
  if (!all_strides(args, alike)) return false;
  alike.dtype = s.dtype, alike.out_dtype = s.out_dtype;
  alike.rows = static_cast<uint32_t>(s.num_rows()), alike.vectors = static_cast<uint32_t>(vectors);
  alike.num_parts = static_cast<uint32_t>(s.num_parts);
  alike.log_lanes = args.log_lanes;
  alike.by = args.by;
  alike.out_data = args.out.data, alike.lse_data = args.lse.data;
  for (int64_t i = 0; i < s.num_parts; ++i) {
    alike.parts[i] = {args.few_parts.at[i].out.data, args.few_parts.at[i].lse.data};
    alike.grads[i] = {args.few_grads.at[i].out.data, args.few_grads.at[i].lse.data};
  }
  return true;
}

}  // namespace xformers::cuda
