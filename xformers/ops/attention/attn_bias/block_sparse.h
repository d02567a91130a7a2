// A mask of blocks of the score matrix, over the whole of every batch element.
#pragma once

#include <tuple>

#include "xformers/ops/attention/attn_bias/lowered_bias.h"

namespace xformers::ops {

// The heads see these blocks besides what a band leaves. Query i sees key j iff layout[b, h, i / block_q, j / block_k]
// and, after from_mask, the element itself is set. Blocks are multiples of 16 up to 1024; the last ones may be short,
// so that there are ceil(seqlen / block) of them. B and H of a layout may be 1; H is the number of query heads, or of
// the groups of 5-D inputs. A row that sees nothing has out 0, lse -inf and gradients 0.
//
// Lists are built once, where the layout is. On the CPU they take 4 to 16 bytes per visible block and 4 per row and
// column of blocks, plus the bits of blocks that are seen in part. On a GPU the host does not wait to learn how many
// are visible: there is room for every block of a layout, every index, and the bits of all blocks of a mask; indices
// and columns out of range, which are errors on the CPU, are clamped.
struct BlockSparseMask {
  // layout: bool or integers (not 0: visible), [nq, nk], [H, nq, nk] or [B, H, nq, nk]. block_size: one number, or
  // {queries, keys}. xformers::Error for other sizes.
  BlockSparseMask(const at::Tensor& layout, at::IntArrayRef block_size);

  // indices: int32 or int64 [B or 1, H or 1, nq, m], key blocks of every query block in any order; entries that come
  // again count once. counts: [B or 1, H or 1, nq], how many of the m there are; without them negative entries are
  // none. xformers::Error for an index or a count out of range.
  static BlockSparseMask from_indices(const at::Tensor& indices, const at::Tensor& counts, int64_t num_key_blocks,
                                      at::IntArrayRef block_size);
  // row_offsets: [(B, H,) nq + 1], columns: [(B, H,) nnz].
  static BlockSparseMask from_bsr(const at::Tensor& row_offsets, const at::Tensor& columns, int64_t num_key_blocks,
                                  at::IntArrayRef block_size);
  // mask: bool [S, T], [H, S, T] or [B, H, S, T]: exactly these elements.
  static BlockSparseMask from_mask(const at::Tensor& mask, at::IntArrayRef block_size = 64);

  // The same blocks, and a band as that of LowerTriangularMask, LowerTriangularFromBottomRightMask, or causal with
  // window_size keys, the diagonal among them. The lists are shared.
  BlockSparseMask make_causal() const;
  BlockSparseMask make_causal_from_bottomright() const;
  BlockSparseMask make_local_attention(int64_t window_size) const;
  // The same, and a tensor [batch, (groups, heads,) seqlen_q, seqlen_k] in the query's dtype that is added to the
  // scores; gradients flow to it.
  BlockSparseMask add_bias(const at::Tensor& bias) const;
  BlockSparseMask to(at::Device device) const;

  at::Tensor density() const;  // visible blocks / all, fp32 []
  at::Tensor layout() const;   // bool [B, H, nq, nk]
  // A tensor of `sizes` ([..., seqlen_q, seqlen_k]), 0 where attended or what is added, -inf elsewhere; for tests.
  at::Tensor materialize(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU) const;

  BlockLists lists;
  MaskBand band = kFullBand;
  at::Tensor scores{};

 private:
  explicit BlockSparseMask(BlockLists block_lists) : lists(std::move(block_lists)) {}
};

LoweredBias lower(const BlockSparseMask& bias);

// ---- the parts that both languages have; see BlockSparseMask ----
void check_block_size(at::IntArrayRef block_size);  // xformers::Error
// layout: those with value 2 are seen in part, and bits_of counts them, if `partial`.
BlockLists lists_of_layout(const at::Tensor& layout, bool partial = false);
BlockLists lists_of_indices(const at::Tensor& indices, const at::Tensor& counts, int64_t num_key_blocks);
BlockLists lists_of_bsr(const at::Tensor& row_offsets, const at::Tensor& columns, int64_t num_key_blocks);
BlockLists lists_of_mask(const at::Tensor& mask, int64_t block_q, int64_t block_k);
// bool [blocks, block_q, block_k] -> int16 [blocks, block_q, block_k / 16], the lowest bit first.
at::Tensor pack_block_bits(const at::Tensor& elements);
at::Tensor layout_of(const BlockLists& lists);
at::Tensor density_of(const BlockLists& lists);
// bool [B, H, seqlen_q, seqlen_k]: what is visible.
at::Tensor elements_of(const BlockLists& lists, int64_t seqlen_q, int64_t seqlen_k);

}  // namespace xformers::ops
