#include "xformers/ops/attention/attn_bias/block_sparse.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "xformers/kernels/params/block_mask.h"
#include "xformers/ops/attention/attn_bias/bias_error.h"
#include "xformers/ops/attention/attn_bias/block_lists.h"
#include "xformers/ops/common/check.h"

namespace xformers::ops {
namespace {

constexpr int64_t kMaxBlock = 1024;
const Check kCheck("BlockSparseMask");

int64_t blocks_in(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

// As [B, H, ...] with `last` dimensions behind, contiguous.
at::Tensor with_layouts(const char* name, const at::Tensor& given, int64_t last, const char* expected) {
  if (!given.defined() || given.dim() < last || given.dim() > last + 2) {
    kCheck.fail(name, describe(given), expected, "B and H, in front, may be 1 or left out");
  }
  at::Tensor t = given.detach();
  while (t.dim() < last + 2) t = t.unsqueeze(0);
  return t.contiguous();
}
at::Tensor as_int64(const char* name, const at::Tensor& t) {
  if (!c10::isIntegralType(t.scalar_type(), /*includeBool=*/false)) {
    kCheck.fail(std::string(name) + ".dtype", describe_dtype(t.scalar_type()), "int32 or int64", "convert it");
  }
  return t.to(at::kLong);
}

at::Tensor to_list(const std::vector<int32_t>& entries, int64_t capacity) {
  at::Tensor list = at::zeros({std::max<int64_t>(capacity, 1)}, at::kInt);
  std::copy(entries.begin(), entries.end(), list.mutable_data_ptr<int32_t>());
  return list;
}

// Room for that many entries, so that layouts that differ a little have lists of one shape: compiled programs then
// stay.
int64_t room_for(int64_t entries) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(entries))); }

constexpr char kSeen = 1, kPartial = 2;

// Lists from rows of a layout: mark(layout, row, marks) leaves kSeen or kPartial for each of num_k_blocks key blocks.
// capacity: of the lists; 0: chosen.
template <class Mark>
BlockLists make_lists(int64_t batch, int64_t heads, int64_t num_q_blocks, int64_t num_k_blocks, int64_t capacity,
                      bool partial, const Mark& mark) {
  const c10::InferenceMode no_inference(false);  // lists are saved for backward, whatever mode they are made in
  const int64_t layouts = batch * heads;
  BlockLists lists;
  lists.key_offsets = at::zeros({batch, heads, num_q_blocks + 1}, at::kInt);
  lists.query_offsets = at::zeros({batch, heads, num_k_blocks + 1}, at::kInt);
  int32_t* const key_offsets = lists.key_offsets.mutable_data_ptr<int32_t>();
  int32_t* const query_offsets = lists.query_offsets.mutable_data_ptr<int32_t>();
  std::vector<int32_t> keys, bits_of;
  std::vector<char> marks(num_k_blocks);
  int32_t num_partial = 0;
  for (int64_t layout = 0; layout < layouts; ++layout) {
    int32_t* const key_offset = key_offsets + layout * (num_q_blocks + 1);
    int32_t* const per_column = query_offsets + layout * (num_k_blocks + 1) + 1;
    for (int64_t row = 0; row < num_q_blocks; ++row) {
      key_offset[row] = static_cast<int32_t>(keys.size());
      std::fill(marks.begin(), marks.end(), 0);
      mark(layout, row, marks.data());
      for (int64_t column = 0; column < num_k_blocks; ++column) {
        if (!marks[column]) continue;
        keys.push_back(static_cast<int32_t>(column));
        if (partial) bits_of.push_back(marks[column] == kPartial ? num_partial++ : -1);
        ++per_column[column];
      }
      TORCH_CHECK(keys.size() < size_t{1} << 31,
                  "BlockSparseMask: more than 2^31 blocks are visible.  Fix: use larger "
                  "blocks.");
    }
    key_offset[num_q_blocks] = static_cast<int32_t>(keys.size());
    per_column[-1] = key_offset[0];
    for (int64_t column = 0; column < num_k_blocks; ++column) per_column[column] += per_column[column - 1];
  }
  // Rows rise, so each key block's list of query blocks comes out ascending.
  std::vector<int32_t> queries(keys.size()), next(num_k_blocks);
  for (int64_t layout = 0; layout < layouts; ++layout) {
    const int32_t* const key_offset = key_offsets + layout * (num_q_blocks + 1);
    std::copy_n(query_offsets + layout * (num_k_blocks + 1), num_k_blocks, next.begin());
    for (int64_t row = 0; row < num_q_blocks; ++row) {
      for (int32_t entry = key_offset[row]; entry < key_offset[row + 1]; ++entry) {
        queries[next[keys[entry]]++] = static_cast<int32_t>(row);
      }
    }
  }
  const int64_t size = static_cast<int64_t>(keys.size());
  if (capacity < size) capacity = room_for(size);
  lists.key_blocks = to_list(keys, capacity);
  lists.query_blocks = to_list(queries, capacity);
  if (num_partial > 0) lists.bits_of = to_list(bits_of, capacity);
  return lists;
}

void check_num_key_blocks(int64_t num_key_blocks) {
  if (num_key_blocks < 0) {
    kCheck.fail("num_key_blocks", std::to_string(num_key_blocks), "0 or more", "give ceil(seqlen_k / block)");
  }
}

void check_block_index(const std::string& place, int64_t index, int64_t num_key_blocks) {
  if (index < num_key_blocks) return;
  kCheck.fail(place, std::to_string(index), "less than num_key_blocks = " + std::to_string(num_key_blocks),
              "indices count key blocks from 0");
}

std::string place_of(const char* name, std::initializer_list<int64_t> index) {
  std::string text = std::string(name) + "[";
  for (const int64_t i : index) text += (text.back() == '[' ? "" : ", ") + std::to_string(i);
  return text + "]";
}

// {q, k} of one number or two.
std::pair<int64_t, int64_t> both_sizes(at::IntArrayRef block_size) {
  check_block_size(block_size);
  return {block_size.front(), block_size.back()};
}

}  // namespace

void check_block_size(at::IntArrayRef block_size) {
  if (block_size.size() != 1 && block_size.size() != 2) {
    kCheck.fail("block_size", std::to_string(block_size.size()) + " numbers", "one, or two: (queries, keys)",
                "64 is a good start");
  }
  for (const int64_t size : block_size) {
    if (size < kSquare || size > kMaxBlock || size % kSquare != 0) {
      throw Error("BlockSparseMask: block_size is " + std::to_string(size) +
                  ", expected a multiple of 16 from 16 to 1024.");
    }
  }
}

BlockLists lists_of_layout(const at::Tensor& given, bool partial) {
  const at::Tensor layout = with_layouts("layout", given, 2, "[nq, nk], [H, nq, nk] or [B, H, nq, nk]");
  if (!c10::isIntegralType(layout.scalar_type(), /*includeBool=*/true)) {
    kCheck.fail("layout.dtype", describe_dtype(layout.scalar_type()), "bool or integers", "pass layout != 0");
  }
  if (!layout.is_cpu()) {
    at::Tensor numbers;
    if (partial) {
      const at::Tensor in_part = layout.eq(int{kPartial});
      numbers = at::where(in_part, in_part.flatten().cumsum(0, at::kInt).view_as(layout) - 1, -1);
    }
    return lists_of_seen(layout.to(at::kBool), numbers, layout.numel());
  }
  const at::Tensor blocks = partial ? layout.to(at::kLong) : layout.to(at::kBool).to(at::kLong);
  const int64_t* const data = blocks.const_data_ptr<int64_t>();
  const int64_t rows = layout.size(2), columns = layout.size(3);
  return make_lists(layout.size(0), layout.size(1), rows, columns, 0, partial,
                    [&](int64_t index, int64_t row, char* marks) {
                      const int64_t* const from = data + (index * rows + row) * columns;
                      for (int64_t column = 0; column < columns; ++column)
                        marks[column] = static_cast<char>(from[column]);
                    });
}

BlockLists lists_of_indices(const at::Tensor& given, const at::Tensor& given_counts, int64_t num_key_blocks) {
  check_num_key_blocks(num_key_blocks);
  const at::Tensor indices =
      as_int64("indices", with_layouts("indices", given, 2, "[B or 1, H or 1, num_query_blocks, m] integers"));
  const int64_t heads = indices.size(1), rows = indices.size(2), most = indices.size(3);
  at::Tensor counts;
  if (given_counts.defined()) {
    counts = as_int64("counts", with_layouts("counts", given_counts, 1, "[B or 1, H or 1, num_query_blocks] integers"));
    kCheck.same_shape("counts.shape", counts.sym_sizes(), indices.sym_sizes().slice(0, 3),
                      "give one count per query block");
  }
  if (!indices.is_cpu()) {
    return lists_of_seen(seen_of_indices(indices, counts, num_key_blocks), {}, indices.numel());
  }
  const int64_t* const data = indices.const_data_ptr<int64_t>();
  return make_lists(
      indices.size(0), heads, rows, num_key_blocks, indices.numel(), false,
      [&](int64_t layout, int64_t row, char* marks) {
        int64_t count = most;
        if (counts.defined()) {
          count = counts.const_data_ptr<int64_t>()[layout * rows + row];
          if (count < 0 || count > most) {
            kCheck.fail(place_of("counts", {layout / heads, layout % heads, row}), std::to_string(count),
                        "0 ... " + std::to_string(most) + ", the entries of a row", "give more indices, or fewer");
          }
        }
        const int64_t* const from = data + (layout * rows + row) * most;
        for (int64_t i = 0; i < count; ++i) {
          if (from[i] >= num_key_blocks || (from[i] < 0 && counts.defined())) {
            const std::string place = place_of("indices", {layout / heads, layout % heads, row, i});
            if (from[i] < 0)
              kCheck.fail(place, std::to_string(from[i]), "0 or more where counts are given", "count less");
            throw Error("BlockSparseMask: " + place + " is " + std::to_string(from[i]) +
                        ", expected less than num_key_blocks = " + std::to_string(num_key_blocks) + ".");
          }
          if (from[i] >= 0) marks[from[i]] = kSeen;
        }
      });
}

BlockLists lists_of_bsr(const at::Tensor& given_offsets, const at::Tensor& given_columns, int64_t num_key_blocks) {
  check_num_key_blocks(num_key_blocks);
  const at::Tensor offsets =
      as_int64("row_offsets", with_layouts("row_offsets", given_offsets, 1, "[(B, H,) num_query_blocks + 1] integers"));
  const at::Tensor columns = as_int64("columns", with_layouts("columns", given_columns, 1, "[(B, H,) nnz] integers"));
  kCheck.same_shape("columns' layouts", columns.sym_sizes().slice(0, 2), offsets.sym_sizes().slice(0, 2),
                    "give both the same B and H");
  const int64_t heads = offsets.size(1), rows = offsets.size(2) - 1, nnz = columns.size(2);
  if (rows < 0) kCheck.fail("row_offsets", describe(given_offsets), "at least one offset", "begin with 0");
  if (!columns.is_cpu()) {
    return lists_of_seen(seen_of_bsr(offsets, columns, num_key_blocks), {}, columns.numel());
  }
  return make_lists(offsets.size(0), heads, rows, num_key_blocks, columns.numel(), false,
                    [&](int64_t layout, int64_t row, char* marks) {
                      const int64_t* const first = offsets.const_data_ptr<int64_t>() + layout * (rows + 1) + row;
                      if (first[0] < 0 || first[1] < first[0] || first[1] > nnz) {
                        kCheck.fail(place_of("row_offsets", {layout / heads, layout % heads, row + 1}),
                                    std::to_string(first[1]),
                                    "no less than " + std::to_string(std::max<int64_t>(first[0], 0)) +
                                        " before it, and at most nnz = " + std::to_string(nnz),
                                    "offsets are running sums of the rows' lengths");
                      }
                      for (int64_t i = first[0]; i < first[1]; ++i) {
                        const int64_t column = columns.const_data_ptr<int64_t>()[layout * nnz + i];
                        const std::string place = place_of("columns", {layout / heads, layout % heads, i});
                        if (column < 0) kCheck.fail(place, std::to_string(column), "0 or more", "columns count from 0");
                        check_block_index(place, column, num_key_blocks);
                        marks[column] = kSeen;
                      }
                    });
}

at::Tensor pack_block_bits(const at::Tensor& given) {
  const c10::InferenceMode no_inference(false);
  const at::Tensor elements = given.to(at::kBool).contiguous();
  if (!elements.is_cpu()) return pack_bits(elements);
  const int64_t blocks = elements.size(0), rows = elements.size(1), keys = elements.size(2);
  at::Tensor bits = at::empty({blocks, rows, keys / kSquare}, at::kShort);
  const bool* from = elements.const_data_ptr<bool>();
  int16_t* const to = bits.mutable_data_ptr<int16_t>();
  for (int64_t word = 0; word < bits.numel(); ++word, from += kSquare) {
    uint32_t set = 0;
    for (int i = 0; i < kSquare; ++i) set |= static_cast<uint32_t>(from[i]) << i;
    to[word] = static_cast<int16_t>(set);
  }
  return bits;
}

BlockLists lists_of_mask(const at::Tensor& given, int64_t block_q, int64_t block_k) {
  const at::Tensor mask = with_layouts("mask", given, 2, "bool [S, T], [H, S, T] or [B, H, S, T]");
  if (mask.scalar_type() != at::kBool) {
    kCheck.fail("mask.dtype", describe_dtype(mask.scalar_type()), "bool, True: attend", "pass mask != 0");
  }
  if (!mask.is_cpu()) return lists_of_elements(mask, block_q, block_k);
  const int64_t seqlen_q = mask.size(2), seqlen_k = mask.size(3);
  const bool* const data = mask.const_data_ptr<bool>();
  std::vector<uint16_t> words;  // of blocks that are seen in part
  const auto mark = [&](int64_t layout, int64_t row, char* marks) {
    const int64_t first_query = row * block_q, queries = std::min(block_q, seqlen_q - first_query);
    for (int64_t key = 0, column = 0; key < seqlen_k; key += block_k, ++column) {
      const int64_t keys = std::min(block_k, seqlen_k - key);
      int64_t seen = 0;
      const auto line = [&](int64_t query) {
        return data + (layout * seqlen_q + first_query + query) * seqlen_k + key;
      };
      for (int64_t query = 0; query < queries; ++query) seen += std::count(line(query), line(query) + keys, true);
      if (seen == 0) continue;
      marks[column] = seen == queries * keys ? kSeen : kPartial;
      if (marks[column] == kSeen) continue;
      const size_t begin = words.size(), stride = block_k / kSquare;
      words.resize(begin + block_q * stride);
      for (int64_t query = 0; query < queries; ++query) {
        for (int64_t i = 0; i < keys; ++i) {
          words[begin + query * stride + i / kSquare] |= static_cast<uint16_t>(line(query)[i] << i % kSquare);
        }
      }
    }
  };
  BlockLists lists =
      make_lists(mask.size(0), mask.size(1), blocks_in(seqlen_q, block_q), blocks_in(seqlen_k, block_k), 0, true, mark);
  lists.block_q = block_q, lists.block_k = block_k;
  if (lists.bits_of.defined()) {
    const c10::InferenceMode no_inference(false);
    const int64_t per_block = block_q * (block_k / kSquare);
    lists.bits = at::empty({static_cast<int64_t>(words.size()) / per_block, block_q, block_k / kSquare}, at::kShort);
    std::copy(words.begin(), words.end(), reinterpret_cast<uint16_t*>(lists.bits.mutable_data_ptr<int16_t>()));
  }
  return lists;
}

at::Tensor layout_of(const BlockLists& given) {
  const at::Tensor offsets = given.key_offsets.cpu(), blocks = given.key_blocks.cpu();
  const int64_t rows = offsets.size(2) - 1, columns = given.query_offsets.size(2) - 1;
  at::Tensor layout = at::zeros({offsets.size(0), offsets.size(1), rows, columns}, at::kBool);
  bool* const seen = layout.mutable_data_ptr<bool>();
  for (int64_t row = 0; row < offsets.size(0) * offsets.size(1) * rows; ++row) {
    const int32_t* const first = offsets.const_data_ptr<int32_t>() + row / rows * (rows + 1) + row % rows;
    for (int32_t entry = first[0]; entry < first[1]; ++entry) {
      seen[row * columns + blocks.const_data_ptr<int32_t>()[entry]] = true;
    }
  }
  return layout.to(given.key_offsets.device());
}

at::Tensor density_of(const BlockLists& lists) {
  const at::Tensor offsets = lists.key_offsets.reshape(-1);
  const int64_t blocks = lists.key_offsets.size(0) * lists.key_offsets.size(1) * (lists.key_offsets.size(2) - 1) *
                         (lists.query_offsets.size(2) - 1);
  return offsets.slice(0, offsets.size(0) - 1).squeeze(0).to(at::kFloat) / std::max<int64_t>(blocks, 1);
}

at::Tensor elements_of(const BlockLists& given, int64_t seqlen_q, int64_t seqlen_k) {
  const at::Tensor offsets = given.key_offsets.cpu(), blocks = given.key_blocks.cpu();
  const at::Tensor bits_of = given.bits.defined() ? given.bits_of.cpu() : at::Tensor();
  const at::Tensor bits = given.bits.defined() ? given.bits.cpu() : at::Tensor();
  const int64_t rows = offsets.size(2) - 1, layouts = offsets.size(0) * offsets.size(1);
  if (rows != blocks_in(seqlen_q, given.block_q) ||
      given.query_offsets.size(2) - 1 != blocks_in(seqlen_k, given.block_k)) {
    bias_error("the shape to materialize has " + std::to_string(seqlen_q) + " queries and " + std::to_string(seqlen_k) +
                   " keys",
               "as many as " + std::to_string(rows) + " x " + std::to_string(given.query_offsets.size(2) - 1) +
                   " blocks of " + std::to_string(given.block_q) + " x " + std::to_string(given.block_k) + " cover",
               "use the lengths of the inputs");
  }
  at::Tensor elements = at::zeros({offsets.size(0), offsets.size(1), seqlen_q, seqlen_k}, at::kBool);
  bool* const to = elements.mutable_data_ptr<bool>();
  for (int64_t layout = 0; layout < layouts; ++layout) {
    for (int64_t query = 0; query < seqlen_q; ++query) {
      const int32_t* const first = offsets.const_data_ptr<int32_t>() + layout * (rows + 1) + query / given.block_q;
      bool* const line = to + (layout * seqlen_q + query) * seqlen_k;
      for (int32_t entry = first[0]; entry < first[1]; ++entry) {
        const int64_t begin = blocks.const_data_ptr<int32_t>()[entry] * given.block_k;
        const int32_t number = bits.defined() ? bits_of.const_data_ptr<int32_t>()[entry] : -1;
        for (int64_t key = begin; key < std::min(begin + given.block_k, seqlen_k); ++key) {
          const int64_t place = (number * given.block_q + query % given.block_q) * given.block_k + key - begin;
          line[key] = number < 0 || (bits.const_data_ptr<int16_t>()[place / kSquare] >> place % kSquare & 1);
        }
      }
    }
  }
  return elements;
}

BlockSparseMask::BlockSparseMask(const at::Tensor& layout, at::IntArrayRef block_size) {
  const auto [block_q, block_k] = both_sizes(block_size);
  lists = lists_of_layout(layout);
  lists.block_q = block_q, lists.block_k = block_k;
}

BlockSparseMask BlockSparseMask::from_indices(const at::Tensor& indices, const at::Tensor& counts,
                                              int64_t num_key_blocks, at::IntArrayRef block_size) {
  const auto [block_q, block_k] = both_sizes(block_size);
  BlockSparseMask mask(lists_of_indices(indices, counts, num_key_blocks));
  mask.lists.block_q = block_q, mask.lists.block_k = block_k;
  return mask;
}

BlockSparseMask BlockSparseMask::from_bsr(const at::Tensor& row_offsets, const at::Tensor& columns,
                                          int64_t num_key_blocks, at::IntArrayRef block_size) {
  const auto [block_q, block_k] = both_sizes(block_size);
  BlockSparseMask mask(lists_of_bsr(row_offsets, columns, num_key_blocks));
  mask.lists.block_q = block_q, mask.lists.block_k = block_k;
  return mask;
}

BlockSparseMask BlockSparseMask::from_mask(const at::Tensor& mask, at::IntArrayRef block_size) {
  const auto [block_q, block_k] = both_sizes(block_size);
  return BlockSparseMask(lists_of_mask(mask, block_q, block_k));
}

namespace {

BlockSparseMask with_band(BlockSparseMask mask, const MaskBand& band) {
  mask.band = band;
  return mask;
}

}  // namespace

BlockSparseMask BlockSparseMask::make_causal() const { return with_band(*this, kCausalBand); }
BlockSparseMask BlockSparseMask::make_causal_from_bottomright() const {
  return with_band(*this, kCausalBottomRightBand);
}
BlockSparseMask BlockSparseMask::make_local_attention(int64_t window_size) const {
  return with_band(*this, causal_window_band(window_size, band.bottom_right));
}

BlockSparseMask BlockSparseMask::add_bias(const at::Tensor& bias) const {
  if (!bias.defined()) bias_error("the tensor to add is undefined", "scores", "leave add_bias out");
  BlockSparseMask mask = *this;
  mask.scores = bias;
  return mask;
}

BlockSparseMask BlockSparseMask::to(at::Device device) const {
  BlockSparseMask mask = *this;
  for (at::Tensor* t : {&mask.lists.key_offsets, &mask.lists.key_blocks, &mask.lists.query_offsets,
                        &mask.lists.query_blocks, &mask.lists.bits_of, &mask.lists.bits, &mask.scores}) {
    if (t->defined()) *t = t->to(device);
  }
  return mask;
}

at::Tensor BlockSparseMask::density() const { return density_of(lists); }
at::Tensor BlockSparseMask::layout() const { return layout_of(lists); }

at::Tensor BlockSparseMask::materialize(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device) const {
  return ops::materialize(lower(*this), sizes, dtype, device);
}

LoweredBias lower(const BlockSparseMask& bias) {
  LoweredBias lowered{.name = "BlockSparseMask", .scores = bias.scores, .blocks = bias.lists};
  return lowered.with(bias.band);
}

}  // namespace xformers::ops
