// Checks of a block mask. Its texts name the class that makes one.
#include <string>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/attention/attn_bias/block_sparse.h"

namespace xformers::ops {
namespace {

constexpr const char* kLists = "make them with BlockSparseMask";

c10::SymInt sym_blocks_in(const c10::SymInt& rows, int64_t block) { return (rows + (block - 1)) / block; }

// [B, H, blocks + 1]
void check_list_offsets(const Check& check, const char* name, const at::Tensor& offsets, const at::Tensor& as) {
  if (offsets.scalar_type() != at::kInt || offsets.dim() != 3 || offsets.sym_size(2) < 1 ||
      offsets.device() != as.device()) {
    check.fail(name, describe(offsets), "[batch or 1, heads or 1, blocks + 1] int32 " + as.device().str(), kLists);
  }
}
void check_list(const Check& check, const char* name, const OptionalTensor& list, const at::Tensor& as) {
  if (!list || list->scalar_type() != at::kInt || list->dim() != 1 || list->device() != as.device()) {
    check.fail(name, describe(list), "[entries] int32 " + as.device().str(), kLists);
  }
}

// What a layout has to be, as the sentence about its shape.
void check_layout_of_blocks(const Check& check, const AttentionArgs& args) {
  const auto q = args.query.sym_sizes();
  const at::Tensor& offsets = *args.block_key_offsets;
  const c10::SymInt seqlen_q = q[1], seqlen_k = args.key.sym_size(1);
  c10::SymInt heads = 1;
  for (size_t dim = 2; dim + 1 < q.size(); ++dim) heads = heads * q[dim];
  const c10::SymInt got[] = {offsets.sym_size(0), offsets.sym_size(1), offsets.sym_size(2) - 1,
                             args.block_query_offsets->sym_size(2) - 1};
  const bool batch = got[0] == 1 || got[0] == q[0];
  const bool all_heads = got[1] == 1 || got[1] == heads || (q.size() == 5 && got[1] == q[2]);
  const c10::SymInt rows = sym_blocks_in(seqlen_q, args.block_q), cols = sym_blocks_in(seqlen_k, args.block_k);
  if (batch && all_heads && got[2] == rows && got[3] == cols) return;
  const std::string size = args.block_q == args.block_k
                               ? std::to_string(args.block_q)
                               : std::to_string(args.block_q) + " queries x " + std::to_string(args.block_k) + " keys";
  const std::string fix = !batch || !all_heads ? "one layout for all of them has size 1 there"
                          : got[3] != cols     ? "give ceil(seqlen_k / " + std::to_string(args.block_k) + ") columns"
                                               : "give ceil(seqlen_q / " + std::to_string(args.block_q) + ") rows";
  const c10::SymInt expected[] = {batch ? got[0] : q[0], all_heads ? got[1] : heads, rows, cols};
  const size_t skipped = got[0] != 1 || !batch ? 0 : got[1] != 1 || !all_heads ? 1 : 2;  // as a user leaves it out
  const auto shape = [&](c10::SymIntArrayRef sizes) { return describe_shape(sizes.slice(skipped)); };
  check.fail("layout", shape(got),
             shape(expected) + " for " + c10::str(seqlen_q) + " queries and " + c10::str(seqlen_k) +
                 " keys in blocks of " + size,
             fix);
}

// Entries [offsets[n], offsets[n + 1]) rise and are below `limit`.
void check_entries(const Check& check, const std::string& name, const at::Tensor& offsets_given,
                   const at::Tensor& list_given, int64_t limit) {
  const at::Tensor offsets = offsets_given.contiguous(), list = list_given.contiguous();
  const int32_t* const first = offsets.const_data_ptr<int32_t>();
  const int32_t* const entries = list.const_data_ptr<int32_t>();
  const int64_t width = offsets.size(2), size = list.numel();
  for (int64_t n = 0; n < offsets.numel(); ++n) {
    const bool begins = n % width == 0;
    if (first[n] < 0 || first[n] > size || (!begins && first[n] < first[n - 1])) {
      check.fail(name + " offset " + std::to_string(n), std::to_string(first[n]),
                 "no less than the one before, and at most the " + std::to_string(size) + " entries", kLists);
    }
    for (int32_t entry = begins ? 0 : first[n - 1]; !begins && entry < first[n]; ++entry) {
      const int64_t after = entry == first[n - 1] ? -1 : entries[entry - 1];
      if (entries[entry] <= after || entries[entry] >= limit) {
        check.fail(name + "[" + std::to_string(entry) + "]", std::to_string(entries[entry]),
                   "more than the one before and less than " + std::to_string(limit), kLists);
      }
    }
  }
}

}  // namespace

void check_blocks(const AttentionArgs& args) {
  const Check check("BlockSparseMask");
  if (is_packed(args)) {
    C10_THROW_ERROR(
        NotImplementedError,
        "BlockSparseMask: given beside packed or paged keys, expected a dense layout: its blocks count from "
        "the first key of a batch row.  Fix: call once per sequence, or hide blocks with a dense bias.");
  }
  check_block_size({args.block_q, args.block_k});
  check_list_offsets(check, "block_key_offsets", *args.block_key_offsets, args.query);
  if (!args.block_query_offsets) check.fail("block_query_offsets", "None", "a tensor beside block_key_offsets", kLists);
  check_list_offsets(check, "block_query_offsets", *args.block_query_offsets, args.query);
  for (int64_t dim = 0; dim < 2; ++dim) {
    check.equal("block_query_offsets' layouts", args.block_query_offsets->sym_size(dim),
                args.block_key_offsets->sym_size(dim), kLists);
  }
  check_list(check, "block_keys", args.block_keys, args.query);
  check_list(check, "block_queries", args.block_queries, args.query);
  check_layout_of_blocks(check, args);
  if (!args.block_bits_of && !args.block_bits) return;
  check_list(check, "block_bits_of", args.block_bits_of, args.query);
  check.equal("block_bits_of's entries", args.block_bits_of->sym_size(0), args.block_keys->sym_size(0), kLists);
  const auto fits = [&](const at::Tensor& bits) {
    return bits.scalar_type() == at::kShort && bits.dim() == 3 && bits.sym_size(1) == args.block_q &&
           bits.sym_size(2) == args.block_k / 16 && bits.device() == args.query.device();
  };
  if (!args.block_bits || !fits(*args.block_bits)) {
    check.fail("block_bits", describe(args.block_bits), "[blocks, block_q, block_k / 16] int16", kLists);
  }
}

void check_block_lists(const AttentionArgs& args) {
  const Check check("BlockSparseMask");
  const int64_t rows = args.block_key_offsets->size(2) - 1, cols = args.block_query_offsets->size(2) - 1;
  check_entries(check, "block_keys", *args.block_key_offsets, *args.block_keys, cols);
  check_entries(check, "block_queries", *args.block_query_offsets, *args.block_queries, rows);
  if (!args.block_bits_of) return;
  const at::Tensor bits_of = args.block_bits_of->contiguous();
  const int64_t blocks = args.block_bits->size(0);
  for (int64_t entry = 0; entry < bits_of.numel(); ++entry) {
    const int32_t number = bits_of.const_data_ptr<int32_t>()[entry];
    if (number >= blocks) {
      check.fail("block_bits_of[" + std::to_string(entry) + "]", std::to_string(number),
                 "less than " + std::to_string(blocks) + ", or -1", kLists);
    }
  }
}

}  // namespace xformers::ops
