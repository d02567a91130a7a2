// The block mask of an attention case: a random layout, element by element, and then as lists.
#include <random>

#include "tests/kernels/attention_run.h"

namespace xformers::testing {
namespace {

int64_t blocks_in(int64_t rows, int64_t block) { return (rows + block - 1) / block; }

}  // namespace

void AttentionRun::make_blocks() {
  const AttentionCase& c = case_;
  const int64_t rows = blocks_in(c.seqlen_q, c.block_q), cols = blocks_in(c.seqlen_k, c.block_k);
  const int64_t layouts = c.block_layouts == BlockLayouts::kOne        ? 1
                          : c.block_layouts == BlockLayouts::kOfGroups ? c.batch * c.num_groups()
                                                                       : c.batch * c.heads;
  std::mt19937_64 random(c.seed + 7);
  const auto drawn = [&](int64_t percent) { return static_cast<int64_t>(random() % 100) < percent; };
  std::vector<char> seen(layouts * rows * cols);
  for (char& block : seen) block = drawn(c.block_percent);
  // Elements of a block, of those with bits: [number of the block][query][key].
  std::vector<std::vector<char>> elements;
  std::vector<int32_t> number(seen.size(), -1);
  for (size_t block = 0; block < seen.size() && c.block_layouts == BlockLayouts::kWithBits; ++block) {
    if (!seen[block] || !drawn(50)) continue;
    number[block] = static_cast<int32_t>(elements.size());
    elements.emplace_back(c.block_q * c.block_k);
    for (char& element : elements.back()) element = drawn(60);
  }
  const auto at = [&](int64_t layout, int64_t row, int64_t col) { return (layout * rows + row) * cols + col; };
  for (int64_t layout = 0; layout < layouts; ++layout) {
    for (int64_t row = 0; row <= rows; ++row) {
      key_offsets.push_back(static_cast<int32_t>(key_blocks.size()));
      for (int64_t col = 0; row < rows && col < cols; ++col) {
        if (!seen[at(layout, row, col)]) continue;
        key_blocks.push_back(static_cast<int32_t>(col));
        bits_of.push_back(number[at(layout, row, col)]);
      }
    }
    for (int64_t col = 0; col <= cols; ++col) {
      query_offsets.push_back(static_cast<int32_t>(query_blocks.size()));
      for (int64_t row = 0; col < cols && row < rows; ++row) {
        if (seen[at(layout, row, col)]) query_blocks.push_back(static_cast<int32_t>(row));
      }
    }
  }
  for (const std::vector<char>& block : elements) {
    for (size_t first = 0; first < block.size(); first += 16) {
      uint16_t word = 0;
      for (size_t i = 0; i < 16; ++i) word |= static_cast<uint16_t>(block[first + i] << i);
      bits.push_back(word);
    }
  }
  shown.resize(c.batch * c.heads * c.seqlen_q * c.seqlen_k);
  for (int64_t index = 0; index < static_cast<int64_t>(shown.size()); ++index) {
    const int64_t key = index % c.seqlen_k, query = index / c.seqlen_k % c.seqlen_q;
    const int64_t head = index / c.seqlen_k / c.seqlen_q;  // of all batches
    const int64_t layout = layouts == 1                                 ? 0
                           : c.block_layouts == BlockLayouts::kOfGroups ? head / c.heads_per_group()
                                                                        : head;
    const int64_t block = at(layout, query / c.block_q, key / c.block_k);
    shown[index] =
        seen[block] && (number[block] < 0 || elements[number[block]][query % c.block_q * c.block_k + key % c.block_k]);
  }
}

BlockMask AttentionRun::blocks() const {
  const AttentionCase& c = case_;
  BlockMask mask;
  if (!c.block_mask()) return mask;
  mask.key_offsets = key_offsets.data(), mask.key_blocks = key_blocks.data();
  mask.query_offsets = query_offsets.data(), mask.query_blocks = query_blocks.data();
  if (!bits.empty()) mask.bits_of = bits_of.data(), mask.bits = bits.data();
  mask.block_q = c.block_q, mask.block_k = c.block_k;
  mask.num_q_blocks = blocks_in(c.seqlen_q, c.block_q), mask.num_k_blocks = blocks_in(c.seqlen_k, c.block_k);
  if (c.block_layouts == BlockLayouts::kOne) return mask;
  mask.head_stride = c.block_layouts == BlockLayouts::kOfGroups ? 0 : 1;
  mask.group_stride = mask.head_stride ? c.heads_per_group() : 1;
  mask.batch_stride = mask.group_stride * c.num_groups();
  return mask;
}

}  // namespace xformers::testing
