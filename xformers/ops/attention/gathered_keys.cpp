#include "xformers/ops/attention/gathered_keys.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

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

// Of each sequence, in its own pages where there are pages.
std::vector<KeyRange> key_ranges(const AttentionArgs& args) {
  const int32_t* used = args.seqused_k->const_data_ptr<int32_t>();
  const int32_t* starts = args.cu_seqlens_k ? args.cu_seqlens_k->const_data_ptr<int32_t>() : nullptr;
  std::vector<KeyRange> ranges(args.seqused_k->size(0));
  for (size_t i = 0; i < ranges.size(); ++i) {
    const int64_t begin = starts ? starts[i] : 0;
    ranges[i] = {begin, begin + used[i]};
  }
  return ranges;
}

// The row of key that each key of each sequence lies in: int64 [sum of lengths].
at::Tensor key_rows(const AttentionArgs& args, const std::vector<KeyRange>& ranges) {
  std::vector<int64_t> rows;
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (!args.page_table) {
      for (int64_t t = ranges[i].begin; t < ranges[i].end; ++t) rows.push_back(t);
      continue;
    }
    const int64_t page_size = args.page_size.expect_int();
    const int32_t* pages =
        args.page_table->const_data_ptr<int32_t>() + static_cast<int64_t>(i) * args.page_table->stride(0);
    for (int64_t t = ranges[i].begin; t < ranges[i].end; ++t) {
      rows.push_back(pages[t / page_size] * page_size + t % page_size);
    }
  }
  return at::tensor(rows, at::kLong);
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

// The inverse: adds up what reaches each of seqlen rows, in fp32 or better, and leaves it so.
at::Tensor scatter(const at::Tensor& grad, const at::Tensor& rows, int64_t seqlen) {
  const at::ScalarType dtype = compute_dtype(grad);
  at::DimVector sizes(grad.sizes().slice(1));
  sizes[0] = seqlen;
  at::Tensor sum = at::zeros(sizes, grad.options().dtype(dtype));
  const at::Tensor parts = grad[0].to(dtype);
  if (sum.is_cpu()) {
    sum.index_add_(0, rows, parts);
  } else {  // index_add_ uses atomics there; this sorts the indices
    sum.index_put_({rows}, parts, /*accumulate=*/true);
  }
  return sum.unsqueeze(0);
}

// What the kernels get of a call whose keys are copies: packed or padded, without pages.
AttentionGradArgs on_copies(const AttentionGradArgs& args, const at::Tensor& rows) {
  AttentionGradArgs gathered = args;
  gathered.key = gather(args.key, rows);
  gathered.value = gather(args.value, rows);
  gathered.page_table.reset();
  gathered.page_size = 0;
  return gathered;
}

AttentionGradients backward_on_host(const AttentionGradArgs& args,
                                    c10::function_ref<AttentionGradients(const AttentionGradArgs& gathered)> backward) {
  const std::vector<KeyRange> ranges = key_ranges(args);
  std::vector<int64_t> offsets{0};
  for (const auto& [begin, end] : ranges) offsets.push_back(offsets.back() + end - begin);
  if (offsets.back() > std::numeric_limits<int32_t>::max()) {
    check_of(args).fail("the sum of seqused_k", std::to_string(offsets.back()),
                        "less than 2^31 where gradients are asked for", "use several calls");
  }
  const at::Tensor rows = key_rows(args, ranges);
  AttentionGradArgs gathered = on_copies(args, rows);
  gathered.cu_seqlens_k = at::tensor(offsets, at::kInt);
  gathered.seqused_k.reset();
  AttentionGradients grads = backward(gathered);
  for (at::Tensor* grad : {&std::get<1>(grads), &std::get<2>(grads)}) {
    *grad = scatter(*grad, rows, args.key.size(1)).to(grad->scalar_type());
  }
  return grads;
}

// Sequences [first, first + count) with their keys in slots of `room` rows; the others see no key. dk and dv are wide.
AttentionGradients backward_on_slots(
    const AttentionGradArgs& args, int64_t room, int64_t first, int64_t count,
    c10::function_ref<AttentionGradients(const AttentionGradArgs& gathered)> backward) {
  const auto options = args.seqused_k->options();
  const int64_t sequences = args.seqused_k->size(0), seqlen = args.key.size(1);
  at::Tensor rows = at::arange(room, options.dtype(at::kLong));
  if (args.page_table) {
    const int64_t page_size = args.page_size.expect_int();
    const at::Tensor pages = args.page_table->narrow(0, first, count).to(at::kLong);
    rows = (pages.unsqueeze(-1) * page_size + at::arange(page_size, rows.options())).flatten();
    rows.clamp_(0, seqlen - 1);  // entries behind a sequence's last page may be anything
  } else {
    rows = rows.repeat(count);
  }
  at::Tensor begins = at::zeros({sequences}, options);  // in a sequence's own slot
  if (args.cu_seqlens_k) begins = args.cu_seqlens_k->narrow(0, 0, sequences).clamp(0, room);
  const at::Tensor index = at::arange(sequences, options) - first;
  const at::Tensor used = at::minimum(*args.seqused_k, room - begins).clamp_min(0);
  AttentionGradArgs gathered = on_copies(args, rows);
  gathered.seqused_k = used * (index >= 0).logical_and(index < count);
  gathered.cu_seqlens_k = at::constant_pad_nd(begins + index.clamp(0, count - 1) * room, {0, 1}, count * room);
  AttentionGradients grads = backward(gathered);
  for (at::Tensor* grad : {&std::get<1>(grads), &std::get<2>(grads)}) *grad = scatter(*grad, rows, seqlen);
  return grads;
}

AttentionGradients backward_on_device(
    const AttentionGradArgs& args, c10::function_ref<AttentionGradients(const AttentionGradArgs& gathered)> backward) {
  constexpr int64_t kManyRows = int64_t{1} << 18;  // copies that need not be made shorter
  const int64_t sequences = args.seqused_k->size(0), seqlen = args.key.size(1);
  const int64_t room = args.page_table ? args.page_table->size(1) * args.page_size.expect_int() : seqlen;
  if (room > std::numeric_limits<int32_t>::max()) {
    check_of(args).fail("the rows of a sequence's pages", std::to_string(room),
                        "less than 2^31 where gradients are asked for", "use fewer pages");
  }
  if (sequences == 0 || room == 0 || seqlen == 0) {
    AttentionGradArgs none = args;
    none.page_table.reset();
    none.page_size = 0;
    none.seqused_k = at::zeros_like(*args.seqused_k);
    none.cu_seqlens_k = at::zeros({sequences + 1}, args.seqused_k->options());
    return backward(none);
  }
  const int64_t at_once = std::clamp<int64_t>(std::max(kManyRows, 2 * seqlen) / room, 1, sequences);
  AttentionGradients sum = backward_on_slots(args, room, 0, at_once, backward);
  for (int64_t first = at_once; first < sequences; first += at_once) {
    const auto [dq, dk, dv, dbias, dslopes, dsinks] =
        backward_on_slots(args, room, first, std::min(at_once, sequences - first), backward);
    std::get<0>(sum) += dq;  // rows of other sequences are zeros
    std::get<1>(sum) += dk;
    std::get<2>(sum) += dv;
    std::get<3>(sum) += dbias;
    std::get<4>(sum) += dslopes;  // dsinks are whole in every part: a sink needs no key
  }
  const at::ScalarType dtype = args.query.scalar_type();
  for (at::Tensor* grad : {&std::get<1>(sum), &std::get<2>(sum)}) *grad = grad->to(dtype);
  return sum;
}

}  // namespace

bool keys_may_be_shared(const AttentionArgs& args) {
  if (!args.seqused_k) return false;
  if (args.page_table) return true;
  if (!args.query.is_cpu()) return args.cu_seqlens_k->size(0) == args.seqused_k->size(0);
  std::vector<KeyRange> ranges = key_ranges(args);
  std::erase_if(ranges, [](const KeyRange& range) { return range.begin == range.end; });
  std::ranges::sort(ranges, {}, &KeyRange::begin);
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin < ranges[i - 1].end) return true;
  }
  return false;
}

AttentionGradients backward_on_gathered_keys(
    const AttentionGradArgs& args, c10::function_ref<AttentionGradients(const AttentionGradArgs& gathered)> backward) {
  return args.query.is_cpu() ? backward_on_host(args, backward) : backward_on_device(args, backward);
}

}  // namespace xformers::ops
