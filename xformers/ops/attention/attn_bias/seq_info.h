// Where sequences lie in a tensor that holds them all. The device tensors are what attention follows; a decoding loop
// may edit them in place. The host copies are the numbers from the time of building. Nothing here waits for a device,
// but what says so.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace xformers::ops {

using Intervals = std::vector<std::pair<int64_t, int64_t>>;  // [start, end) of every sequence

// Offsets, lengths or page numbers as they are now: waits for their device. xformers::Error for meta tensors.
std::vector<int64_t> on_host(const at::Tensor& numbers);

// x [1, total, *] -> [1, seqlen, *] per sequence, or [batch_size, seqlen, *] per run of batch_sizes; views where x
// allows. Differentiable.
std::vector<at::Tensor> split_sequences(const at::Tensor& x, c10::SymIntArrayRef seqstart,
                                        c10::SymIntArrayRef batch_sizes);

// xformers::Error unless the lengths of packed sequences are none below 0 and their sum is less than 2^31.
void check_lengths(at::IntArrayRef seqlens);
// The same of sequences in slots of `padding`, none of them longer than that.
void check_padded(at::IntArrayRef seqlens, int64_t padding);
// The same of sequences anywhere; see GappySeqInfo.
void check_gappy(at::IntArrayRef seqstarts, at::IntArrayRef seqlens, bool paged);
// Whether a key belongs to two sequences (first_past_its_room); starts of sequences, and their total.
bool share_keys(at::IntArrayRef seqstarts, at::IntArrayRef seqlens);

// One after the other: sequence b is [seqstart[b], seqstart[b + 1]).
struct SeqLenInfo {
  // Without a device: on the CPU, and the numbers follow the inputs to theirs.
  static SeqLenInfo from_seqlens(at::IntArrayRef seqlens, std::optional<at::Device> device = std::nullopt);

  // x [1, total, *] -> one [1, seqlen, *] per sequence; with batch sizes, runs of that many sequences of equal length
  // are put together as [batch_size, seqlen, *].
  std::vector<at::Tensor> split(const at::Tensor& x, const std::vector<int64_t>& batch_sizes = {}) const {
    return split_sequences(x, c10::fromIntArrayRefSlow(seqstart_host), c10::fromIntArrayRefSlow(batch_sizes));
  }
  SeqLenInfo to(at::Device device) const;
  Intervals intervals() const;  // of the device tensor: waits for it
  int64_t num_sequences() const { return static_cast<int64_t>(seqstart_host.size()) - 1; }

  at::Tensor seqstart;                 // int32 [sequences + 1]
  std::vector<int64_t> seqstart_host;  // the same numbers
  int64_t max_seqlen = -1, min_seqlen = -1;
  bool device_given = false;
};

// In slots of `padding` positions, of which sequence b uses the first seqlen[b].
struct PaddedSeqLenInfo {
  static PaddedSeqLenInfo from_seqlens_padded(at::IntArrayRef seqlens, int64_t padding,
                                              std::optional<at::Device> device = std::nullopt);
  PaddedSeqLenInfo to(at::Device device) const;
  PaddedSeqLenInfo with_padding(int64_t padding) const;  // the same lengths in other slots
  Intervals intervals() const;                           // of the device tensors: waits for them
  int64_t num_sequences() const { return static_cast<int64_t>(seqlen_host.size()); }

  at::Tensor seqstart;  // int32 [sequences + 1]: 0, padding, ..., sequences * padding
  at::Tensor seqlen;    // int32 [sequences]
  std::vector<int64_t> seqstart_host, seqlen_host;
  int64_t padding = 0, max_seqlen = -1, min_seqlen = -1;
  bool device_given = false;
};

// Anywhere: sequence b is seqstart[b] + [0, seqlen[b]). Ranges may overlap, come in any order and leave gaps.
struct GappySeqInfo {
  // seqstarts: one per sequence, then the total length; paged: one per sequence, counted in its own pages.
  static GappySeqInfo from_seqlens_gappy(at::IntArrayRef seqstarts, at::IntArrayRef seqlens, bool paged,
                                         std::optional<at::Device> device = std::nullopt);
  GappySeqInfo to(at::Device device) const;
  Intervals intervals() const;  // of the device tensors: waits for them
  int64_t num_sequences() const { return static_cast<int64_t>(seqlen_host.size()); }

  at::Tensor seqstart;  // int32 [sequences + 1], the last one the total; paged: [sequences]
  at::Tensor seqlen;    // int32 [sequences]
  std::vector<int64_t> seqstart_host, seqlen_host;
  int64_t max_seqlen = -1, min_seqlen = -1;
  bool disjoint = true;  // as built, no key belongs to two sequences (first_past_its_room)
  bool device_given = false;
};

// xformers::Error unless there are as many of the one as of the other.
void check_same_count(size_t num_queries, size_t num_keys);

}  // namespace xformers::ops
