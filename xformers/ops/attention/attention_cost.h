// FLOPs and bytes of attention, from shapes, the band and the lengths of sequences. Without torch: see profiler/cost.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "xformers/profiler/cost.h"

namespace xformers::ops {

// Query i sees the keys from i + shift - window_left to i + shift + window_right, where shift is seqlen_k - seqlen_q at
// the bottom right and 0 at the top left; a negative window is unbounded.
struct SeenKeys {
  int64_t window_left = -1, window_right = -1;
  bool bottom_right = false;
};

// Sum over i in [0, rows) of i + shift, cut to [0, limit].
inline int64_t sum_of_cut(int64_t rows, int64_t shift, int64_t limit) {
  const int64_t full_from = std::clamp<int64_t>(limit - shift, 0, rows);
  const int64_t begin = std::clamp<int64_t>(-shift, 0, full_from);
  const int64_t rising = full_from - begin;
  return rising * (begin + full_from - 1) / 2 + rising * shift + (rows - full_from) * limit;
}

// Twice the number of (query, key) pairs that are seen. Causal without a window counts the diagonal as half, as is
// usual: n^2.
inline int64_t twice_seen_pairs(int64_t seqlen_q, int64_t seqlen_k, const SeenKeys& seen) {
  constexpr int64_t kFar = int64_t{1} << 40;
  const int64_t shift = seen.bottom_right ? seqlen_k - seqlen_q : 0;
  const int64_t left = seen.window_left < 0 ? kFar : std::min(seen.window_left, kFar);
  const int64_t right = seen.window_right < 0 ? kFar : std::min(seen.window_right, kFar);
  const int64_t pairs =
      sum_of_cut(seqlen_q, shift + right + 1, seqlen_k) - sum_of_cut(seqlen_q, shift - left, seqlen_k);
  const bool is_causal = right == 0 && left + 1 >= seqlen_k;
  const int64_t diagonal = std::max<int64_t>(std::min(seqlen_q, seqlen_k - shift) - std::max<int64_t>(-shift, 0), 0);
  return 2 * pairs - (is_causal ? diagonal : 0);
}

// One head: two products per pair, 2 head_dim and 2 head_dim_v operations.
inline int64_t head_flops(int64_t seqlen_q, int64_t seqlen_k, int64_t head_dim, int64_t head_dim_v,
                          const SeenKeys& seen) {
  return twice_seen_pairs(seqlen_q, seqlen_k, seen) * (head_dim + head_dim_v);
}

// Lengths of packed sequences; without them, `sequences` of equal length.
struct Packed {
  int64_t sequences = 1;
  std::vector<int64_t> seqlens_q, seqlens_k;
};

// All heads that share lengths, in one batch element.
inline int64_t packed_head_flops(int64_t seqlen_q, int64_t seqlen_k, int64_t head_dim, int64_t head_dim_v,
                                 const SeenKeys& seen, const Packed& packed) {
  if (packed.seqlens_q.empty() || packed.seqlens_k.size() < packed.seqlens_q.size()) {
    const int64_t n = std::max<int64_t>(packed.sequences, 1);
    return n * head_flops(seqlen_q / n, seqlen_k / n, head_dim, head_dim_v, seen);
  }
  int64_t flops = 0;
  for (size_t i = 0; i < packed.seqlens_q.size(); ++i) {
    flops += head_flops(packed.seqlens_q[i], packed.seqlens_k[i], head_dim, head_dim_v, seen);
  }
  return flops;
}

inline std::vector<int64_t> lengths_between(const std::vector<int64_t>& offsets) {
  std::vector<int64_t> lengths;
  for (size_t i = 1; i < offsets.size(); ++i) lengths.push_back(offsets[i] - offsets[i - 1]);
  return lengths;
}

// Backward does 5 products where forward does 2.
inline int64_t backward_flops(int64_t forward) { return forward * 5 / 2; }

// ---- from recorded calls: query [batch, seqlen, (groups,) heads, head_dim], packed sequences with batch 1 or, as
// FlashAttention has them, [total, heads, head_dim] ----
inline profiler::Cost attention_cost(const profiler::Call& call, const SeenKeys& seen, const char* used,
                                     bool backward) {
  profiler::Shape query = call.shape("query"), key = call.shape("key"), value = call.shape("value");
  const bool is_packed = call.has_tensor("cu_seqlens_q");
  if (query.size() < 3 || key.size() < 3 || value.size() < 3) return {};
  if (is_packed && query.size() == 3) query.insert(query.begin(), 1);
  if (is_packed && key.size() == 3) key.insert(key.begin(), 1);
  Packed packed;
  if (is_packed) {
    packed.sequences = call.shape("cu_seqlens_q")[0] - 1;
    packed.seqlens_q = lengths_between(call.integers("cu_seqlens_q"));
    packed.seqlens_k = call.has_tensor(used) ? call.integers(used) : lengths_between(call.integers("cu_seqlens_k"));
  } else if (call.has_tensor(used)) {  // a batch whose keys are cut to lengths
    packed.seqlens_k = call.integers(used);
    packed.seqlens_q.assign(packed.seqlens_k.size(), query[1]);
  }
  int64_t heads = 1;
  for (size_t dim = packed.seqlens_q.empty() || is_packed ? 0 : 1; dim + 1 < query.size(); ++dim) {
    if (dim != 1) heads *= query[dim];
  }
  // Keys in pages: what a sequence sees isn't more than its share of the memory.
  const int64_t seqlen_k = call.has_tensor("block_tables") ? key[0] * key[1] : key[1];
  const int64_t forward = heads * packed_head_flops(query[1], seqlen_k, query.back(), value.back(), seen, packed);
  const int64_t size = profiler::element_bytes(call.type("query"));
  const int64_t q = profiler::count(query), k = profiler::count(key), v = profiler::count(value);
  const int64_t out = q / std::max<int64_t>(query.back(), 1) * value.back();
  const int64_t moved = backward ? 2 * (q + k + v + out) : q + k + v + out;
  return {backward ? backward_flops(forward) : forward, moved * size, std::string(call.type("query"))};
}

inline profiler::Cost attention_op_cost(const profiler::Call& call, bool backward) {
  const SeenKeys seen{call.integer("window_left", -1), call.integer("window_right", -1),
                      call.flag("bottom_right", false)};
  return attention_cost(call, seen, "seqused_k", backward);
}

inline profiler::Cost flash_cost(const profiler::Call& call, bool backward) {
  const int64_t right = call.flag("is_causal", false) ? 0 : call.integer("window_right", -1);
  return attention_cost(call, {call.integer("window_left", -1), right, /*bottom_right=*/true}, "seqused_k", backward);
}

inline profiler::Cost cutlass_cost(const profiler::Call& call, bool backward) {
  const int64_t mask = call.integer("custom_mask_type", 0), window = call.integer("window_size", 0);
  return attention_cost(call, {window > 0 ? window - 1 : -1, mask == 0 ? -1 : 0, mask == 2}, "seqlen_k", backward);
}

}  // namespace xformers::ops
