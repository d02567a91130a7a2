#include "xformers/ops/attention/attn_bias/seq_info.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "xformers/ops/attention/attn_bias/bias_error.h"
#include "xformers/ops/attention/attn_bias/lowered_bias.h"

namespace xformers::ops {
namespace {

void check_numbers(at::IntArrayRef numbers, const std::string& what) {
  for (const int64_t number : numbers) {
    if (number < 0) {
      bias_error("a " + what + " is " + std::to_string(number), "0 or more", "count from the first position");
    }
    if (number > std::numeric_limits<int32_t>::max()) {
      bias_error("a " + what + " is " + std::to_string(number), "less than 2^31", "use several calls");
    }
  }
}

at::Tensor to_device(const at::Tensor& numbers, at::Device device) { return numbers.to(device, /*non_blocking=*/true); }

// Without waiting for the device.
at::Tensor to_int32(at::IntArrayRef numbers, std::optional<at::Device> device) {
  const at::Tensor on_host = at::tensor(numbers, at::dtype(at::kInt));
  if (!device || device->is_cpu()) return on_host;
  return to_device(device->is_cuda() ? on_host.pin_memory() : on_host, *device);
}

template <class Info>
void set_extremes(Info& info, at::IntArrayRef seqlens) {
  if (seqlens.empty()) return;
  const auto [shortest, longest] = std::minmax_element(seqlens.begin(), seqlens.end());
  info.min_seqlen = *shortest;
  info.max_seqlen = *longest;
}

// Starts and lengths -> [start, start + length)
Intervals intervals_of(const at::Tensor& seqstart, const at::Tensor& seqlen) {
  const std::vector<int64_t> starts = on_host(seqstart), lengths = on_host(seqlen);
  Intervals intervals;
  for (size_t i = 0; i < lengths.size(); ++i) intervals.emplace_back(starts[i], starts[i] + lengths[i]);
  return intervals;
}

template <class Info>
Info moved_info(Info info, at::Device device) {
  info.seqstart = to_device(info.seqstart, device);
  if constexpr (requires { info.seqlen; }) info.seqlen = to_device(info.seqlen, device);
  info.device_given = true;
  return info;
}

}  // namespace

std::vector<int64_t> on_host(const at::Tensor& numbers) {
  if (numbers.is_meta()) bias_error("a tensor of offsets is on meta", "numbers", "ask before the bias moves there");
  const at::Tensor copy = numbers.to(at::kCPU, at::kLong).contiguous();
  return {copy.const_data_ptr<int64_t>(), copy.const_data_ptr<int64_t>() + copy.numel()};
}

void check_lengths(at::IntArrayRef seqlens) {
  check_numbers(seqlens, "sequence length");
  check_numbers(std::accumulate(seqlens.begin(), seqlens.end(), int64_t{0}), "total length");
}

void check_padded(at::IntArrayRef seqlens, int64_t padding) {
  check_numbers(seqlens, "sequence length");
  const int64_t longest = seqlens.empty() ? 0 : *std::max_element(seqlens.begin(), seqlens.end());
  if (padding < 0 || longest > padding) {
    bias_error("the longest sequence is " + std::to_string(longest), "at most the padding, " + std::to_string(padding),
               "give longer slots");
  }
  check_numbers(padding, "padding");
  check_numbers(static_cast<int64_t>(seqlens.size()) * padding, "total length");
}

void check_gappy(at::IntArrayRef seqstarts, at::IntArrayRef seqlens, bool paged) {
  check_numbers(seqlens, "sequence length");
  check_numbers(seqstarts, "sequence start");
  if (seqlens.empty()) bias_error("there are no sequences", "at least one", "give their lengths");
  const size_t expected = seqlens.size() + (paged ? 0 : 1);
  if (seqstarts.size() != expected) {
    bias_error("there are " + std::to_string(seqstarts.size()) + " starts",
               std::to_string(expected) + " for " + std::to_string(seqlens.size()) + " sequences",
               std::string("give one start per sequence") + (paged ? "" : ", and the total length of the keys last"));
  }
  for (size_t i = 0; !paged && i < seqlens.size(); ++i) {
    if (seqstarts[i] + seqlens[i] > seqstarts.back()) {
      bias_error("a sequence of keys is [" + std::to_string(seqstarts[i]) + ", " +
                     std::to_string(seqstarts[i] + seqlens[i]) + ")",
                 "a range inside [0, " + std::to_string(seqstarts.back()) + ")",
                 "the last start is the total length of the keys");
    }
  }
}

bool share_keys(at::IntArrayRef seqstarts, at::IntArrayRef seqlens) {
  const std::vector<int32_t> starts(seqstarts.begin(), seqstarts.end()), lengths(seqlens.begin(), seqlens.end());
  return first_past_its_room(starts, lengths) >= 0;
}

SeqLenInfo SeqLenInfo::from_seqlens(at::IntArrayRef seqlens, std::optional<at::Device> device) {
  check_lengths(seqlens);
  SeqLenInfo info;
  info.seqstart_host.reserve(seqlens.size() + 1);
  info.seqstart_host.push_back(0);
  for (const int64_t seqlen : seqlens) info.seqstart_host.push_back(info.seqstart_host.back() + seqlen);
  set_extremes(info, seqlens);
  info.seqstart = to_int32(info.seqstart_host, device);
  info.device_given = device.has_value();
  return info;
}

std::vector<at::Tensor> split_sequences(const at::Tensor& x, c10::SymIntArrayRef seqstart,
                                        c10::SymIntArrayRef batch_sizes) {
  const c10::SymInt& total = seqstart.back();
  const int64_t num_sequences = static_cast<int64_t>(seqstart.size()) - 1;
  const auto x_sizes = x.sym_sizes();
  if (x.dim() < 2 || x_sizes[0] != 1 || x_sizes[1] != total) {
    bias_error("the tensor to split has shape " + c10::str(x_sizes), "[1, " + c10::str(total) + ", ...]",
               "split what was concatenated for this bias");
  }
  const auto seqlen = [&](int64_t i) { return seqstart[i + 1] - seqstart[i]; };
  std::vector<at::Tensor> parts;
  int64_t sequence = 0;
  const auto take = [&](int64_t count) {
    c10::SymDimVector sizes(x_sizes.begin(), x_sizes.end());
    sizes[0] = count;
    sizes[1] = count ? seqlen(sequence) : c10::SymInt(0);
    parts.push_back(x.slice_symint(1, seqstart[sequence], seqstart[sequence + count]).reshape_symint(sizes));
    sequence += count;
  };
  if (batch_sizes.empty()) {
    while (sequence < num_sequences) take(1);
    return parts;
  }
  for (const c10::SymInt& size : batch_sizes) {
    const int64_t count = size.guard_int(__FILE__, __LINE__);  // how many results there are
    bool fits = count >= 0 && count <= num_sequences - sequence;
    for (int64_t i = sequence; fits && i < sequence + count; ++i) fits = seqlen(i) == seqlen(sequence);
    if (!fits) {
      bias_error("the batch sizes are " + c10::str(batch_sizes),
                 "runs of sequences of equal length that make up all " + std::to_string(num_sequences),
                 "leave batch_sizes as from_tensor_list set them");
    }
    take(count);
  }
  return parts;
}

SeqLenInfo SeqLenInfo::to(at::Device device) const { return moved_info(*this, device); }

Intervals SeqLenInfo::intervals() const {
  const std::vector<int64_t> starts = on_host(seqstart);
  Intervals intervals;
  for (size_t i = 1; i < starts.size(); ++i) intervals.emplace_back(starts[i - 1], starts[i]);
  return intervals;
}

PaddedSeqLenInfo PaddedSeqLenInfo::from_seqlens_padded(at::IntArrayRef seqlens, int64_t padding,
                                                       std::optional<at::Device> device) {
  check_padded(seqlens, padding);
  PaddedSeqLenInfo info;
  set_extremes(info, seqlens);
  info.padding = padding;
  for (size_t i = 0; i <= seqlens.size(); ++i) info.seqstart_host.push_back(static_cast<int64_t>(i) * padding);
  info.seqlen_host = seqlens.vec();
  info.seqstart = to_int32(info.seqstart_host, device);
  info.seqlen = to_int32(seqlens, device);
  info.device_given = device.has_value();
  return info;
}

PaddedSeqLenInfo PaddedSeqLenInfo::to(at::Device device) const { return moved_info(*this, device); }

PaddedSeqLenInfo PaddedSeqLenInfo::with_padding(int64_t slots) const {
  PaddedSeqLenInfo info = from_seqlens_padded(seqlen_host, slots, seqlen.device());
  info.seqlen = seqlen;  // shared: attention follows what a decoding loop writes there
  info.device_given = device_given;
  return info;
}

Intervals PaddedSeqLenInfo::intervals() const { return intervals_of(seqstart, seqlen); }

GappySeqInfo GappySeqInfo::from_seqlens_gappy(at::IntArrayRef seqstarts, at::IntArrayRef seqlens, bool paged,
                                              std::optional<at::Device> device) {
  check_gappy(seqstarts, seqlens, paged);
  GappySeqInfo info;
  set_extremes(info, seqlens);
  info.seqstart_host = seqstarts.vec();
  info.seqlen_host = seqlens.vec();
  info.seqstart = to_int32(seqstarts, device);
  info.seqlen = to_int32(seqlens, device);
  info.disjoint = !paged && !share_keys(seqstarts, seqlens);
  info.device_given = device.has_value();
  return info;
}

GappySeqInfo GappySeqInfo::to(at::Device device) const { return moved_info(*this, device); }

Intervals GappySeqInfo::intervals() const { return intervals_of(seqstart, seqlen); }

void check_same_count(size_t num_queries, size_t num_keys) {
  if (num_queries == num_keys) return;
  bias_error(
      "there are " + std::to_string(num_queries) + " query lengths and " + std::to_string(num_keys) + " key lengths",
      "as many of each", "give one pair of lengths per sequence; 0 is a length");
}

}  // namespace xformers::ops
