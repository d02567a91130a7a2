#include "xformers/ops/attention/attn_bias.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <limits>
#include <string>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {
namespace {

[[noreturn]] void fail(const std::string& what, const std::string& expected, const std::string& fix) {
  throw Error("attn_bias: " + what + ", expected " + expected + ".  Fix: " + fix + ".");
}

}  // namespace

LocalAttentionFromBottomRightMask::LocalAttentionFromBottomRightMask(int64_t left, int64_t right)
    : window_left(left), window_right(right) {
  if (left < 0 || right < 0) {
    fail("the window is " + std::to_string(left) + " keys to the left and " + std::to_string(right) + " to the right",
         "0 or more on both sides", "0 sees the diagonal alone");
  }
}

SeqLenInfo SeqLenInfo::from_seqlens(at::IntArrayRef seqlens, std::optional<at::Device> device) {
  SeqLenInfo info;
  info.seqstart_host.reserve(seqlens.size() + 1);
  info.seqstart_host.push_back(0);
  for (const int64_t seqlen : seqlens) {
    if (seqlen < 0) fail("a sequence length is " + std::to_string(seqlen), "0 or more", "pass lengths, not offsets");
    info.seqstart_host.push_back(info.seqstart_host.back() + seqlen);
    info.min_seqlen = info.min_seqlen < 0 ? seqlen : std::min(info.min_seqlen, seqlen);
    info.max_seqlen = std::max(info.max_seqlen, seqlen);
  }
  if (info.seqstart_host.back() > std::numeric_limits<int32_t>::max()) {
    fail("the total length is " + std::to_string(info.seqstart_host.back()), "less than 2^31", "use several calls");
  }
  info.seqstart = at::tensor(info.seqstart_host, at::dtype(at::kInt)).to(device.value_or(at::kCPU));
  info.device_given = device.has_value();
  return info;
}

std::vector<at::Tensor> SeqLenInfo::split(const at::Tensor& x, const std::vector<int64_t>& batch_sizes) const {
  const int64_t total = seqstart_host.back();
  if (x.dim() < 2 || x.size(0) != 1 || x.size(1) != total) {
    fail("the tensor to split has shape " + c10::str(x.sizes()), "[1, " + std::to_string(total) + ", ...]",
         "split what was concatenated for this bias");
  }
  const int64_t num_sequences = static_cast<int64_t>(seqstart_host.size()) - 1;
  std::vector<at::Tensor> parts;
  int64_t sequence = 0;
  const auto take = [&](int64_t count) {
    const int64_t begin = seqstart_host[sequence], end = seqstart_host[sequence + count];
    const at::Tensor part = x.slice(1, begin, end);
    at::DimVector sizes(x.sizes());
    sizes[0] = count;
    sizes[1] = count ? (end - begin) / count : 0;
    parts.push_back(part.reshape(sizes));
    sequence += count;
  };
  if (batch_sizes.empty()) {
    while (sequence < num_sequences) take(1);
  } else {
    for (const int64_t count : batch_sizes) {
      if (sequence + count > num_sequences) break;
      take(count);
    }
  }
  return parts;
}

BlockDiagonalMask BlockDiagonalMask::from_seqlens(at::IntArrayRef q_seqlen, at::OptionalIntArrayRef kv_seqlen,
                                                  std::optional<at::Device> device) {
  if (kv_seqlen && kv_seqlen->size() != q_seqlen.size()) {
    fail("there are " + std::to_string(q_seqlen.size()) + " query lengths and " + std::to_string(kv_seqlen->size()) +
             " key lengths",
         "as many of each", "give one pair of lengths per sequence; 0 is a length");
  }
  BlockDiagonalMask mask;
  mask.q_seqinfo = SeqLenInfo::from_seqlens(q_seqlen, device);
  mask.k_seqinfo = kv_seqlen && *kv_seqlen != q_seqlen ? SeqLenInfo::from_seqlens(*kv_seqlen, device) : mask.q_seqinfo;
  return mask;
}

std::pair<BlockDiagonalMask, at::Tensor> BlockDiagonalMask::from_tensor_list(at::TensorList tensors) {
  std::vector<int64_t> seqlens, batch_sizes;
  std::vector<at::Tensor> rows;
  if (tensors.empty()) fail("the list of tensors is empty", "at least one", "pass [batch, seqlen, ...] tensors");
  for (const at::Tensor& t : tensors) {
    if (t.dim() < 2) fail("a tensor has shape " + c10::str(t.sizes()), "[batch, seqlen, ...]", "add a batch dimension");
    batch_sizes.push_back(t.size(0));
    seqlens.insert(seqlens.end(), t.size(0), t.size(1));
    at::DimVector sizes(t.sizes());
    sizes[0] = 1;
    sizes[1] = t.size(0) * t.size(1);
    rows.push_back(t.reshape(sizes));
  }
  BlockDiagonalMask mask = from_seqlens(seqlens, std::nullopt, tensors.front().device());
  mask.batch_sizes = batch_sizes;
  return {mask, at::cat(rows, 1)};
}

std::vector<at::Tensor> BlockDiagonalMask::split(const at::Tensor& x) const {
  if (q_seqinfo.seqstart_host != k_seqinfo.seqstart_host) {
    fail("queries and keys have different lengths", "the same", "use split_queries or split_kv");
  }
  return split_queries(x);
}

BlockDiagonalCausalMask BlockDiagonalMask::make_causal() const {
  BlockDiagonalCausalMask causal;
  static_cast<BlockDiagonalMask&>(causal) = *this;
  return causal;
}

BlockDiagonalCausalMask BlockDiagonalCausalMask::from_seqlens(at::IntArrayRef q_seqlen,
                                                              at::OptionalIntArrayRef kv_seqlen,
                                                              std::optional<at::Device> device) {
  return BlockDiagonalMask::from_seqlens(q_seqlen, kv_seqlen, device).make_causal();
}

LoweredBias lower(const at::Tensor& bias) { return {.name = bias.defined() ? "Tensor" : "None", .scores = bias}; }

LoweredBias lower(const LowerTriangularMask&) { return {.name = "LowerTriangularMask", .window_right = 0}; }

LoweredBias lower(const LowerTriangularFromBottomRightMask&) {
  return {.name = "LowerTriangularFromBottomRightMask", .window_right = 0, .bottom_right = true, .takes_3d = false};
}

LoweredBias lower(const LocalAttentionFromBottomRightMask& bias) {
  return {.name = "LocalAttentionFromBottomRightMask",
          .window_left = bias.window_left,
          .window_right = bias.window_right,
          .bottom_right = true,
          .takes_3d = false};
}

LoweredBias lower(const BlockDiagonalMask& bias) {
  return {.name = "BlockDiagonalMask",
          .cu_seqlens_q = bias.q_seqinfo.seqstart,
          .cu_seqlens_k = bias.k_seqinfo.seqstart,
          .device_given = bias.q_seqinfo.device_given,
          .takes_3d = false};
}

LoweredBias lower(const BlockDiagonalCausalMask& bias) {
  LoweredBias lowered = lower(static_cast<const BlockDiagonalMask&>(bias));
  lowered.name = "BlockDiagonalCausalMask";
  lowered.window_right = 0;
  return lowered;
}

}  // namespace xformers::ops
