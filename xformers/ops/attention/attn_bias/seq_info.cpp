#include "xformers/ops/attention/attn_bias/seq_info.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>

#include "xformers/ops/attention/attn_bias/bias_error.h"

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

at::Tensor to_int32(at::IntArrayRef numbers, std::optional<at::Device> device) {
  return to_device(at::tensor(numbers, at::dtype(at::kInt)), device.value_or(at::kCPU));
}

std::vector<int64_t> on_host(const at::Tensor& numbers) {
  const at::Tensor copy = numbers.to(at::kCPU, at::kLong);
  return {copy.const_data_ptr<int64_t>(), copy.const_data_ptr<int64_t>() + copy.numel()};
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

SeqLenInfo SeqLenInfo::from_seqlens(at::IntArrayRef seqlens, std::optional<at::Device> device) {
  check_numbers(seqlens, "sequence length");
  SeqLenInfo info;
  info.seqstart_host.reserve(seqlens.size() + 1);
  info.seqstart_host.push_back(0);
  for (const int64_t seqlen : seqlens) info.seqstart_host.push_back(info.seqstart_host.back() + seqlen);
  check_numbers(info.seqstart_host.back(), "total length");
  set_extremes(info, seqlens);
  info.seqstart = to_int32(info.seqstart_host, device);
  info.device_given = device.has_value();
  return info;
}

std::vector<at::Tensor> SeqLenInfo::split(const at::Tensor& x, const std::vector<int64_t>& batch_sizes) const {
  const int64_t total = seqstart_host.back();
  if (x.dim() < 2 || x.size(0) != 1 || x.size(1) != total) {
    bias_error("the tensor to split has shape " + c10::str(x.sizes()), "[1, " + std::to_string(total) + ", ...]",
               "split what was concatenated for this bias");
  }
  const auto seqlen = [&](int64_t i) { return seqstart_host[i + 1] - seqstart_host[i]; };
  std::vector<at::Tensor> parts;
  int64_t sequence = 0;
  const auto take = [&](int64_t count) {
    at::DimVector sizes(x.sizes());
    sizes[0] = count;
    sizes[1] = count ? seqlen(sequence) : 0;
    parts.push_back(x.slice(1, seqstart_host[sequence], seqstart_host[sequence + count]).reshape(sizes));
    sequence += count;
  };
  if (batch_sizes.empty()) {
    while (sequence < num_sequences()) take(1);
  } else {
    for (const int64_t count : batch_sizes) {
      bool fits = count >= 0 && count <= num_sequences() - sequence;
      for (int64_t i = sequence; fits && i < sequence + count; ++i) fits = seqlen(i) == seqlen(sequence);
      if (!fits) {
        bias_error("the batch sizes are " + c10::str(at::IntArrayRef(batch_sizes)),
                   "runs of sequences of equal length that make up all " + std::to_string(num_sequences()),
                   "leave batch_sizes as from_tensor_list set them");
      }
      take(count);
    }
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
  check_numbers(seqlens, "sequence length");
  PaddedSeqLenInfo info;
  set_extremes(info, seqlens);
  if (padding < 0 || info.max_seqlen > padding) {
    bias_error("the longest sequence is " + std::to_string(std::max<int64_t>(info.max_seqlen, 0)),
               "at most the padding, " + std::to_string(padding), "give longer slots");
  }
  check_numbers(padding, "padding");
  info.padding = padding;
  for (size_t i = 0; i <= seqlens.size(); ++i) info.seqstart_host.push_back(static_cast<int64_t>(i) * padding);
  check_numbers(info.seqstart_host.back(), "total length");
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

namespace {
bool are_disjoint(at::IntArrayRef starts, at::IntArrayRef lengths) {
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (lengths[i] > 0) ranges.emplace_back(starts[i], starts[i] + lengths[i]);
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) return false;
  }
  return true;
}
}  // namespace

GappySeqInfo GappySeqInfo::from_seqlens_gappy(at::IntArrayRef seqstarts, at::IntArrayRef seqlens, bool paged,
                                              std::optional<at::Device> device) {
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
  GappySeqInfo info;
  set_extremes(info, seqlens);
  info.seqstart_host = seqstarts.vec();
  info.seqlen_host = seqlens.vec();
  info.seqstart = to_int32(seqstarts, device);
  info.seqlen = to_int32(seqlens, device);
  info.disjoint = !paged && are_disjoint(seqstarts, seqlens);
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
