// Checks of the numbers in offsets and page tables.
#include <algorithm>
#include <string>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/attention/attn_bias/lowered_bias.h"

namespace xformers::ops {
namespace {

// offsets [n + 1] rise from 0 to total.
void check_rising(const AttentionCheck& check, const std::string& name, const at::Tensor& offsets, int64_t total) {
  const int32_t* data = offsets.const_data_ptr<int32_t>();
  const int64_t last = offsets.size(0) - 1;
  if (data[0] != 0) check.fail(name + "[0]", std::to_string(data[0]), "0", "offsets start at the first position");
  for (int64_t i = 0; i < last; ++i) {
    if (data[i + 1] < data[i]) {
      check.fail(name + "[" + std::to_string(i + 1) + "]", std::to_string(data[i + 1]),
                 std::to_string(data[i]) + " or more", "offsets are running sums of lengths and never fall");
    }
  }
  if (data[last] != total) {
    check.fail("the sum of the sequence lengths (" + name + "[-1])", std::to_string(data[last]),
               std::to_string(total) + ", the seqlen of the tensor", "give the lengths of the concatenated sequences");
  }
}

// Keys [begin, end) of a sequence lie in pages whose used rows are inside key.
void check_pages_of(const AttentionArgs& args, int64_t sequence, int64_t begin, int64_t end) {
  const int64_t page_size = args.page_size.expect_int(), rows = args.key.size(1);
  const int32_t* pages = args.page_table->const_data_ptr<int32_t>() + sequence * args.page_table->stride(0);
  for (int64_t page = begin / page_size; page * page_size < end; ++page) {
    const int64_t used = std::min(page_size, end - page * page_size);
    if (pages[page] < 0 || int64_t{pages[page]} * page_size + used > rows) {
      check_of(args).fail("page_table[" + std::to_string(sequence) + ", " + std::to_string(page) + "]",
                          std::to_string(pages[page]),
                          "a page inside key, whose " + std::to_string(rows) + " rows are " +
                              std::to_string(rows / page_size) + " pages of " + std::to_string(page_size),
                          "the table holds page numbers, not rows");
    }
  }
}

// Starts with a total promise keys of their own to every sequence: a length that grew past its slot would attend to the
// next one's.
void check_rooms(const AttentionArgs& args, const int32_t* starts, const int32_t* used) {
  const int64_t sequences = args.seqused_k->size(0);
  if (args.cu_seqlens_k->size(0) == sequences) return;
  const auto count = static_cast<size_t>(sequences);
  const int64_t i = first_past_its_room({starts, count + 1}, {used, count});
  if (i < 0) return;
  const bool slots = std::is_sorted(starts, starts + count + 1);
  check_of(args).fail(
      "keys of sequence " + std::to_string(i),
      "[" + std::to_string(starts[i]) + ", " + std::to_string(int64_t{starts[i]} + used[i]) + ")",
      slots ? "a range inside [" + std::to_string(starts[i]) + ", " + std::to_string(starts[i + 1]) + "), its own slot"
            : "a range that no other sequence uses",
      "give a longer cache or a shorter length; keys that sequences share have starts without a total");
}

// The bias of packed sequences has a place for every query and key. Lengths are good.
void check_bias_room(const AttentionArgs& args) {
  const int32_t* q = args.cu_seqlens_q->const_data_ptr<int32_t>();
  const int32_t* k = args.cu_seqlens_k ? args.cu_seqlens_k->const_data_ptr<int32_t>() : nullptr;
  const int32_t* used = args.seqused_k ? args.seqused_k->const_data_ptr<int32_t>() : nullptr;
  const at::Tensor& bias = *args.attn_bias;
  for (int64_t i = 0; i + 1 < args.cu_seqlens_q->size(0); ++i) {
    const int64_t queries = q[i + 1] - q[i], keys = used ? used[i] : k[i + 1] - k[i];
    if (queries <= bias.size(-2) && keys <= bias.size(-1)) continue;
    check_of(args).fail("attn_bias.shape", describe_shape(bias.sym_sizes()),
                        "room for the " + std::to_string(queries) + " queries and " + std::to_string(keys) +
                            " keys of sequence " + std::to_string(i),
                        "its last two dimensions are those of the longest sequence, or more");
  }
}

void check_offsets_alone(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  // Every query belongs to a sequence; so does every key, unless seqused_k says which are used.
  check_rising(check, "cu_seqlens_q", *args.cu_seqlens_q, args.query.size(1));
  if (!args.seqused_k) return check_rising(check, "cu_seqlens_k", *args.cu_seqlens_k, args.key.size(1));

  const int32_t* starts = args.cu_seqlens_k ? args.cu_seqlens_k->const_data_ptr<int32_t>() : nullptr;
  const int32_t* used = args.seqused_k->const_data_ptr<int32_t>();
  const bool paged = args.page_table.has_value();
  const int64_t room = paged ? args.page_table->size(1) * args.page_size.expect_int() : args.key.size(1);
  for (int64_t i = 0; i < args.seqused_k->size(0); ++i) {
    const int64_t begin = starts ? starts[i] : 0, end = begin + used[i];
    if (begin < 0 || used[i] < 0 || end > room) {
      check.fail("keys of sequence " + std::to_string(i),
                 "[" + std::to_string(begin) + ", " + std::to_string(end) + ")",
                 "a range inside [0, " + std::to_string(room) + ")" + (paged ? ", pages * page_size" : ""),
                 "check cu_seqlens_k and seqused_k");
    }
    if (paged && end > begin) check_pages_of(args, i, begin, end);
  }
  if (starts && !paged) check_rooms(args, starts, used);
}

}  // namespace

void check_offsets(const AttentionArgs& args) {
  if (args.block_key_offsets) check_block_lists(args);
  if (!args.cu_seqlens_q) return;
  check_offsets_alone(args);
  if (args.attn_bias) check_bias_room(args);
}

}  // namespace xformers::ops
