// One attention test or benchmark case, with a short text form:
//
//   attention:bf16,b2,q1023,k2048,h16,kv4,d128,causal_br
//
//   fp32 fp64 bf16 fp16    element type, always first
//   b q k h d dv           batch, seqlen_q, seqlen_k, query heads, head_dim, head_dim_v (default: head_dim)
//   kv<n>                  key/value heads in memory, each shared by h / n query heads in a row (default: h)
//   g<n>                   head groups, the fifth dimension (default: kv if heads are shared, else 1)
//   vfull                  value heads are not shared although key heads are
//   causal causal_br       from the top-left or the bottom-right corner
//   band<l>_<r> …_br       window_left, window_right; * for an open side
//   blocks64x32_25         a random quarter of the blocks of 64 queries and 32 keys is visible, other ones for every
//                          batch and head; then @bits (half of them have bits of their own), @one (one layout for all),
//                          @groups (one per batch and group)
//   bias…                  tensor bias: bias, bias_prefix<n> (-inf on the first n keys), bias_blocks (whole -inf blocks
//                          and rows); then @odd (unaligned), @kstride (k_stride 3), @heads (shared by batch and heads),
//                          @rows (q_stride 0), @cols (k_stride 0); of packed sequences at the place inside each, wider
//                          than the longest, @seqs (shared by sequences), @heads (by sequences and heads)
//   softcap5 alibi sinks   what else is done to scores; alibi@seqs, sinks@seqs: numbers of their own for each sequence
//   q3+0+5,k4+1+9          packed sequences by their lengths; used2+1+9 of their keys are in use, the rest are gaps
//   q3+1,from7+0,used5+9   the keys of a sequence start anywhere among the k<n> keys, in any order, and may be shared
//   page16 …@shared        keys in pages of 16, in random order; sequences share pages; from (default 0) then counts
//                          in a sequence's own pages; pages and rows that no sequence uses hold NaN
//   int4_2 fp8             keys and values as integers: 4 bits in 2 groups; e4m3
//   bhsd padded far qkv    memory: [batch, heads, seqlen, head_dim]; NaN between rows; rows 2^30 elements apart; q, k
//                          and v as views of one [batch, seqlen, 3, heads, head_dim] (default: [batch, seqlen, heads,
//                          head_dim])
//   wide                   out in fp32
//   splits5                parts in which keys are worked on and merged (default 0: chosen)
//   p0.1 scale0.3 amp4     dropout; softmax_scale (default: head_dim^-0.5); factor on q
//   dlse                   a gradient reaches lse
//   t3 seed7               threads (default 2); random inputs (default 1)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "xformers/kernels/params/attention.h"

namespace xformers::testing {

enum class Memory { kRows, kHeadsFirst, kPadded, kFar, kQkv };
enum class BiasValues { kNone, kRandom, kPrefix, kBlocks };
enum class BiasMemory { kDense, kOdd, kKeyStride, kSharedByHeads, kSharedByRows, kSharedByKeys, kSharedBySequences };
enum class BlockLayouts { kOwn, kWithBits, kOne, kOfGroups };
enum class PerHead { kNone, kOfHeads, kOfSequences };  // numbers [heads] or [sequences, heads]

struct AttentionCase {
  DType dtype = DType::kFloat32;
  int64_t batch = 1, seqlen_q = 1, seqlen_k = 1, heads = 1, head_dim = 8;
  std::optional<int64_t> head_dim_v, kv_heads, groups;
  bool value_unshared = false;
  MaskBand band;
  int64_t block_q = 0, block_k = 0, block_percent = 0;  // 0: no block mask
  BlockLayouts block_layouts = BlockLayouts::kOwn;
  BiasValues bias = BiasValues::kNone;
  int64_t bias_prefix = 0;
  BiasMemory bias_memory = BiasMemory::kDense;
  double softcap = 0;
  PerHead alibi = PerHead::kNone, sinks = PerHead::kNone;
  // Packed when not empty; seqlen_q and seqlen_k are then sums of lengths. starts_k goes without lengths_k.
  std::vector<int32_t> lengths_q, lengths_k, used_k, starts_k;
  int64_t page_size = 0;  // 0: keys are not paged
  bool shared_pages = false;
  KvFormat kv_format = KvFormat::kPlain;
  int64_t quantization_groups = 1;
  bool wide_out = false;
  int64_t num_splits = 0;
  Memory memory = Memory::kRows;
  double dropout_p = 0, amplitude = 1;
  std::optional<double> scale;
  bool dlse = false;
  int threads = 2;
  uint64_t seed = 1;

  int64_t dim_v() const { return head_dim_v.value_or(head_dim); }
  bool heads_shared() const { return kv_heads && *kv_heads < heads; }
  int64_t num_groups() const { return groups.value_or(heads_shared() ? *kv_heads : 1); }
  int64_t heads_per_group() const { return num_groups() == 0 ? 0 : heads / num_groups(); }
  bool packed() const { return !lengths_q.empty(); }
  bool paged() const { return page_size > 0; }
  bool block_mask() const { return block_q > 0; }
  int64_t num_sequences() const { return packed() ? static_cast<int64_t>(lengths_q.size()) : batch; }
  // Backward takes neither pages, nor keys of two sequences, nor integers, nor a wide out.
  bool forward_only() const { return !starts_k.empty() || paged() || kv_format != KvFormat::kPlain || wide_out; }
  // Elements of a row of K or V with head dim `dim`: 32-bit words of integers.
  int64_t key_row_size(int64_t dim) const;
  double softmax_scale() const;
};

// Pages that hold the keys of sequence b; rows that K and V have in all follow from lengths and pages.
int64_t pages_of(const AttentionCase& c, size_t b);
void set_totals(AttentionCase& c);

std::string to_text(const AttentionCase& c);

// Throws std::invalid_argument that names the word it can't read.
AttentionCase parse_attention_case(std::string_view text);

// "attention:*,q3" stands for one case per element type.
std::vector<AttentionCase> parse_attention_cases(const std::vector<std::string>& texts);

}  // namespace xformers::testing
