#include "xformers/ops/attention/gathered_keys.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "xformers/ops/attention/attention_check.h"

namespace xformers::ops {
namespace {

struct KeyRange {
  int64_t begin, end;
};

// The arguments with offsets and pages on the CPU, where they are checked.
AttentionArgs with_host_layout(const AttentionArgs& args) {
  if (args.query.is_cpu()) return args;  // checked already
  AttentionArgs host = args;
  for (OptionalTensor* t : {&host.cu_seqlens_q, &host.cu_seqlens_k, &host.seqused_k, &host.page_table}) {
    if (*t) *t = (*t)->cpu();
  }
  check_offsets(host);
  return host;
}

// Of each sequence, in its own pages where there are pages.
std::vector<KeyRange> key_ranges(const AttentionArgs& host) {
  const int32_t* used = host.seqused_k->const_data_ptr<int32_t>();
  const int32_t* starts = host.cu_seqlens_k ? host.cu_seqlens_k->const_data_ptr<int32_t>() : nullptr;
  std::vector<KeyRange> ranges(host.seqused_k->size(0));
  for (size_t i = 0; i < ranges.size(); ++i) {
    const int64_t begin = starts ? starts[i] : 0;
    ranges[i] = {begin, begin + used[i]};
  }
  return ranges;
}

// The row of key that each key of each sequence lies in: int64 [sum of lengths] on the device of key.
at::Tensor key_rows(const AttentionArgs& host, const std::vector<KeyRange>& ranges) {
  std::vector<int64_t> rows;
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (!host.page_table) {
      for (int64_t t = ranges[i].begin; t < ranges[i].end; ++t) rows.push_back(t);
      continue;
    }
    const int64_t page_size = host.page_size.expect_int();
    const int32_t* pages =
        host.page_table->const_data_ptr<int32_t>() + static_cast<int64_t>(i) * host.page_table->stride(0);
    for (int64_t t = ranges[i].begin; t < ranges[i].end; ++t) {
      rows.push_back(pages[t / page_size] * page_size + t % page_size);
    }
  }
  return at::tensor(rows, at::kLong).to(host.key.device());
}

// t [1, seqlen, ..., head_dim] -> [1, rows, ..., head_dim]; `expand`ed heads are copied once.
at::Tensor gather(const at::Tensor& t, const at::Tensor& rows) {
  at::Tensor once = t;
  for (int64_t dim = 2; dim + 1 < t.dim(); ++dim) {
    if (t.stride(dim) == 0 && t.size(dim) > 1) once = once.narrow(dim, 0, 1);
  }
  at::DimVector sizes(t.sizes());
  sizes[1] = rows.size(0);
  return once.index_select(1, rows).expand(sizes);
}

// The inverse: adds up what reaches each of seqlen rows, in fp32 or better.
at::Tensor scatter(const at::Tensor& grad, const at::Tensor& rows, int64_t seqlen) {
  const at::ScalarType dtype = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::DimVector sizes(grad.sizes().slice(1));
  sizes[0] = seqlen;
  at::Tensor sum = at::zeros(sizes, grad.options().dtype(dtype));
  const at::Tensor parts = grad[0].to(dtype);
  if (sum.is_cpu()) {
    sum.index_add_(0, rows, parts);
  } else {  // index_add_ uses atomics there; this sorts the indices
    sum.index_put_({rows}, parts, /*accumulate=*/true);
  }
  return sum.to(grad.scalar_type()).unsqueeze(0);
}

}  // namespace

bool keys_may_be_shared(const AttentionArgs& args) {
  if (!args.seqused_k) return false;
  if (args.page_table) return true;
  std::vector<KeyRange> ranges = key_ranges(with_host_layout(args));
  std::erase_if(ranges, [](const KeyRange& range) { return range.begin == range.end; });
  std::ranges::sort(ranges, {}, &KeyRange::begin);
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) return true;
  }
  return false;
}

AttentionGradients backward_on_gathered_keys(
    const AttentionGradArgs& args, c10::function_ref<AttentionGradients(const AttentionGradArgs& gathered)> backward) {
  const AttentionArgs host = with_host_layout(args);
  const std::vector<KeyRange> ranges = key_ranges(host);
  std::vector<int64_t> offsets{0};
  for (const auto& [begin, end] : ranges) offsets.push_back(offsets.back() + end - begin);
  if (offsets.back() > std::numeric_limits<int32_t>::max()) {
    check_of(args).fail("the sum of seqused_k", std::to_string(offsets.back()),
                        "less than 2^31 where gradients are asked for", "use several calls");
  }
  const at::Tensor rows = key_rows(host, ranges);

  AttentionGradArgs gathered = args;
  gathered.key = gather(args.key, rows);
  gathered.value = gather(args.value, rows);
  gathered.cu_seqlens_k = at::tensor(offsets, at::kInt).to(args.key.device());
  gathered.seqused_k.reset();
  gathered.page_table.reset();
  gathered.page_size = 0;
  auto [dq, dk, dv, dbias] = backward(gathered);
  const int64_t seqlen = args.key.size(1);
  return {dq, scatter(dk, rows, seqlen), scatter(dv, rows, seqlen), dbias};
}

}  // namespace xformers::ops
