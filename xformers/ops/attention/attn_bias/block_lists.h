// Lists of visible blocks, made where the layout is, by operations on whole tensors: a host that enqueues them waits
// for nothing. How many blocks are visible is then known on the device alone, and lists have room for as many as there
// may be.
#pragma once

#include <cstdint>

#include "xformers/ops/attention/attn_bias/lowered_bias.h"

namespace xformers::ops {

// seen: bool [B, H, num_q_blocks, num_k_blocks]. numbers: int [B, H, num_q_blocks, num_k_blocks], for each block that
// is seen that of its bits, or -1; undefined: no block has bits. capacity: of the lists, at least as many as are seen.
BlockLists lists_of_seen(const at::Tensor& seen, const at::Tensor& numbers, int64_t capacity);

// seen, of key blocks of every query block: indices int64 [B, H, num_q_blocks, m], counts int64 [B, H, num_q_blocks] or
// undefined. An index beyond the last block counts as the last one; a negative one is none, or, beside counts, the
// first.
at::Tensor seen_of_indices(const at::Tensor& indices, const at::Tensor& counts, int64_t num_key_blocks);

// seen, of compressed rows: offsets int64 [B, H, num_q_blocks + 1], columns int64 [B, H, nnz], which are clamped.
at::Tensor seen_of_bsr(const at::Tensor& offsets, const at::Tensor& columns, int64_t num_key_blocks);

// Blocks of a mask of elements, bool [B, H, S, T]: lists, and bits of every block, seen or not.
BlockLists lists_of_elements(const at::Tensor& mask, int64_t block_q, int64_t block_k);

// bool [..., 16 n] -> int16 [..., n], the lowest bit first.
at::Tensor pack_bits(const at::Tensor& elements);

}  // namespace xformers::ops
