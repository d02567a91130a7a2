#include "xformers/ops/attention/attn_bias/lowered_bias.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "xformers/ops/attention/attn_bias/bias_error.h"
#include "xformers/ops/attention/attn_bias/block_sparse.h"
#include "xformers/ops/attention/attn_bias/seq_info.h"

namespace xformers::ops {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();
constexpr const char* kTooLong = "give a longer cache, or shorter lengths (k_seqinfo.seqlen)";
constexpr const char* kTotals = "use the total lengths of queries and keys";

MaskBand band_of(const LoweredBias& bias) {
  return {.window_left = bias.window_left, .window_right = bias.window_right, .bottom_right = bias.bottom_right};
}

// [seqlen_q, seqlen_k]: 0 where visible, -inf elsewhere.
at::Tensor materialize_band(int64_t seqlen_q, int64_t seqlen_k, const MaskBand& band, at::ScalarType dtype,
                            at::Device device) {
  const auto index = at::dtype(at::kLong).device(device);
  const at::Tensor diagonal =
      at::arange(seqlen_q, index).unsqueeze(1) + (band.bottom_right ? seqlen_k - seqlen_q : int64_t{0});
  const at::Tensor key = at::arange(seqlen_k, index).unsqueeze(0);
  at::Tensor hidden = at::zeros({seqlen_q, seqlen_k}, index.dtype(at::kBool));
  const int64_t all = seqlen_q + seqlen_k;  // no window is wider, and no sum overflows
  if (band.window_left >= 0) hidden.logical_or_(key < diagonal - std::min(band.window_left, all));
  if (band.window_right >= 0) hidden.logical_or_(key > diagonal + std::min(band.window_right, all));
  return at::zeros({seqlen_q, seqlen_k}, index.dtype(dtype))
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

// [start, end) of the keys of every sequence: rows of key, or counted in the sequence's own pages.
std::vector<std::pair<int64_t, int64_t>> key_ranges(const LoweredBias& bias) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  std::vector<int64_t> starts;
  if (bias.cu_seqlens_k.defined()) starts = on_host(bias.cu_seqlens_k);
  if (bias.seqused_k.defined()) {
    const std::vector<int64_t> used = on_host(bias.seqused_k);
    if (starts.empty()) starts.resize(used.size());
    for (size_t i = 0; i < used.size(); ++i) ranges.emplace_back(starts[i], starts[i] + used[i]);
  } else {
    for (size_t i = 1; i < starts.size(); ++i) ranges.emplace_back(starts[i - 1], starts[i]);
  }
  return ranges;
}

void check_sizes(at::IntArrayRef sizes, int64_t queries, int64_t keys, bool or_more) {
  const int64_t got = sizes.back();
  if (sizes[sizes.size() - 2] == queries && (got == keys || (or_more && got > keys))) return;
  bias_error("the shape to materialize is " + c10::str(sizes),
             "[..., " + std::to_string(queries) + ", " + std::to_string(keys) + (or_more ? " or more]" : "]"), kTotals);
}

// Starts with a total, and lengths that may have been edited since.
void check_rooms(const LoweredBias& bias) {
  if (!bias.seqused_k.defined()) return;
  const at::Tensor starts = bias.cu_seqlens_k.to(at::kCPU), used = bias.seqused_k.to(at::kCPU);
  const auto numbers = [](const at::Tensor& t) {
    return c10::ArrayRef<int32_t>(t.const_data_ptr<int32_t>(), static_cast<size_t>(t.numel()));
  };
  const int64_t i = first_past_its_room(numbers(starts), numbers(used));
  if (i >= 0) bias_error("keys of sequence " + std::to_string(i) + " run into another's", "no more than fit", kTooLong);
}

// Scores as numbers to add, on the device and in the dtype of `options`.
at::Tensor to_added(const at::Tensor& scores, const at::TensorOptions& options) {
  if (!scores.defined()) return {};
  const at::Tensor here = scores.detach().to(options.device());
  if (here.scalar_type() != at::kBool) return here.to(options);
  return at::zeros(here.sizes(), options).masked_fill_(here.logical_not(), kHidden);
}

// Those of one sequence: [(groups,) heads, queries, keys].
at::Tensor scores_of(const at::Tensor& scores, int64_t sequence, int64_t queries, int64_t keys) {
  check_scores(scores, 0, queries, keys);
  return scores.select(0, scores.size(0) == 1 ? 0 : sequence).slice(-2, 0, queries).slice(-1, 0, keys);
}

at::Tensor materialize_sequences(const LoweredBias& bias, at::IntArrayRef sizes, const at::TensorOptions& options,
                                 std::optional<int64_t> total_keys) {
  const std::vector<int64_t> rows = on_host(bias.cu_seqlens_q);
  const auto ranges = key_ranges(bias);
  const size_t sequences = rows.size() - 1;
  const bool paged = bias.page_table.defined();
  const int64_t page_size = paged ? bias.page_size : 1;
  const int64_t room = paged ? bias.page_table.size(1) * page_size : sizes.back();  // keys of one sequence: at most
  std::vector<int64_t> pages;
  int64_t width = sizes.back();
  if (paged) {
    pages = on_host(bias.page_table);
    check_sizes(sizes, rows.back(), static_cast<int64_t>(sequences) * room, /*or_more=*/false);
    const int64_t largest = pages.empty() ? -1 : *std::max_element(pages.begin(), pages.end());
    width = (largest + 1) * page_size;
  } else if (bias.cu_seqlens_k.size(0) == static_cast<int64_t>(rows.size())) {  // starts and their total
    check_sizes(sizes, rows.back(), on_host(bias.cu_seqlens_k).back(), /*or_more=*/false);
    check_rooms(bias);
  } else {
    int64_t end = 0;
    for (const auto& range : ranges) end = std::max(end, range.second);
    check_sizes(sizes, rows.back(), total_keys.value_or(end), /*or_more=*/!total_keys);
  }
  const at::Tensor scores = to_added(bias.scores, options);
  at::DimVector mask_sizes{rows.back(), width};
  if (scores.defined()) mask_sizes.insert(mask_sizes.begin(), scores.sizes().begin() + 1, scores.sizes().end() - 2);
  at::Tensor mask = at::full(mask_sizes, kHidden, options);
  for (size_t i = 0; i < sequences; ++i) {
    const auto [k0, k1] = ranges[i];
    if (k0 < 0 || k1 < k0 || k1 > room) {
      bias_error(
          "keys of sequence " + std::to_string(i) + " is [" + std::to_string(k0) + ", " + std::to_string(k1) + ")",
          "a range inside [0, " + std::to_string(room) + ")", kTooLong);
    }
    at::Tensor band = materialize_band(rows[i + 1] - rows[i], k1 - k0, band_of(bias),
                                       c10::typeMetaToScalarType(options.dtype()), options.device());
    if (scores.defined()) band = band + scores_of(scores, static_cast<int64_t>(i), band.size(0), band.size(1));
    const at::Tensor own = mask.slice(-2, rows[i], rows[i + 1]);
    if (!paged) {
      own.slice(-1, k0, k1).copy_(band);
      continue;
    }
    // Only pages that hold keys: the rest of the table may be anything.
    for (int64_t page = k0 / page_size; page * page_size < k1 && k0 < k1; ++page) {
      const int64_t where = pages[i * bias.page_table.size(1) + page];
      if (where < 0) bias_error("a page in use is " + std::to_string(where), "0 or more", "give a page of the keys");
      const int64_t first = std::max(k0, page * page_size), last = std::min(k1, (page + 1) * page_size);
      const int64_t shift = (where - page) * page_size;  // logical -> physical
      own.slice(-1, where * page_size, (where + 1) * page_size)
          .fill_(kHidden);  // of a page met twice, the last one counts
      own.slice(-1, first + shift, last + shift).copy_(band.slice(-1, first - k0, last - k0));
    }
  }
  at::DimVector physical(sizes);
  physical.back() = width;
  while (mask.dim() > static_cast<int64_t>(physical.size()) && mask.size(0) == 1) mask = mask.squeeze(0);
  return mask.expand(physical);
}

// Where blocks hide: [B or 1, (groups or 1,) heads or 1, queries, keys], as far as `sizes` has these dimensions.
at::Tensor hidden_blocks(const BlockLists& blocks, at::IntArrayRef sizes) {
  at::Tensor hidden = elements_of(blocks, sizes[sizes.size() - 2], sizes.back()).logical_not_();
  const int64_t heads = hidden.size(1);
  if (sizes.size() == 5) {
    if (heads == 1 || heads == sizes[1]) return hidden.unsqueeze(2);
    return hidden.unflatten(1, {sizes[1], sizes[2]});
  }
  if (sizes.size() == 3 && hidden.size(0) > 1) return hidden.squeeze(1);
  while (hidden.dim() > static_cast<int64_t>(sizes.size()) && hidden.size(0) == 1) hidden = hidden.squeeze(0);
  return hidden;
}

}  // namespace

MaskBand causal_window_band(int64_t window_size, bool bottom_right) {
  if (window_size <= 0) {
    bias_error("the window size is " + std::to_string(window_size), "1 or more", "1 sees the diagonal alone");
  }
  return {.window_left = window_size - 1, .window_right = 0, .bottom_right = bottom_right};
}

void check_windows(int64_t window_left, int64_t window_right) {
  for (const auto& [name, window] : {std::pair{"window_left", window_left}, std::pair{"window_right", window_right}}) {
    if (window < 0) {
      bias_error(std::string(name) + " is " + std::to_string(window), "0 or more", "0 sees the diagonal alone");
    }
  }
}

at::Tensor materialize(const LoweredBias& bias, at::IntArrayRef sizes, at::ScalarType dtype, at::Device device,
                       std::optional<int64_t> total_keys) {
  if (sizes.size() < 2) bias_error("the shape to materialize is " + c10::str(sizes), "[..., queries, keys]", kTotals);
  if (bias.cu_seqlens_q.defined()) {
    return materialize_sequences(bias, sizes, at::dtype(dtype).device(device), total_keys);
  }
  at::Tensor mask = materialize_band(sizes[sizes.size() - 2], sizes.back(), band_of(bias), dtype, device).expand(sizes);
  if (bias.blocks.key_offsets.defined()) mask = mask.masked_fill(hidden_blocks(bias.blocks, sizes).to(device), kHidden);
  const at::Tensor scores = to_added(bias.scores, mask.options());
  return scores.defined() ? mask + scores : mask;
}

void check_scores(const at::Tensor& scores, int64_t num_sequences, int64_t longest_q, int64_t longest_k) {
  const bool fits = scores.defined() && (scores.dim() == 4 || scores.dim() == 5) &&
                    (scores.sym_size(0) == 1 || num_sequences == 0 || scores.sym_size(0) == num_sequences) &&
                    scores.sym_size(-2) >= longest_q && scores.sym_size(-1) >= longest_k;
  if (fits) return;
  const std::string sequences = num_sequences == 0 ? "sequences" : std::to_string(num_sequences);
  bias_error("the tensor to add has shape " + (scores.defined() ? c10::str(scores.sym_sizes()) : "None"),
             "[" + sequences + " or 1, heads or 1, " + std::to_string(longest_q) + " or more, " +
                 std::to_string(longest_k) + " or more]",
             "give scores by the place inside each sequence, for the longest one");
}

int64_t first_past_its_room(c10::ArrayRef<int32_t> starts, c10::ArrayRef<int32_t> lengths) {
  const auto end = [&](size_t i) { return int64_t{starts[i]} + lengths[i]; };
  if (std::is_sorted(starts.begin(), starts.end())) {
    for (size_t i = 0; i < lengths.size(); ++i) {
      if (end(i) > starts[i + 1]) return static_cast<int64_t>(i);
    }
    return -1;
  }
  std::vector<size_t> order;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] > 0) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return starts[a] < starts[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (end(order[i - 1]) > starts[order[i]]) return static_cast<int64_t>(order[i - 1]);
  }
  return -1;
}

}  // namespace xformers::ops
