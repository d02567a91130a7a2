// Backward on tensor cores (mma.sync), one block per tile of keys of one head:
//
//   load K, V
//   for blocks of queries that see them:
//     load the next Q, dO | S^T = K Q^T,  dP^T = V dO^T | bias, mask, dropout;  P^T, dS^T
//     dV += P^T dO,  dK += dS^T Q,  dq_sum += dS K
//   write dK, dV
//
// Scores are transposed, so that P^T and dS^T are in registers what the products with dO and Q want; only dS passes
// through shared memory for dq. A lane holds keys lane / 4 and + 8 of each key tile. dq_sum is in global memory, in
// fp32, summed by all key tiles: in any order, or, where args.turns is given, in the order of the tiles.
// Shared memory: K, V, [stages] Q, [stages] dO, dS^T (and P^T where warps halve the work), [stages] lse and delta.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/bwd_args.h"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/quantised_rows.cuh"
#include "xformers/kernels/cuda/attention/sm80/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80/tile.cuh"

namespace xformers::cuda::sm80 {

// Where a thread's numbers of one block of dq lie: fours of neighbours, the threads of the block side by side.
__device__ __forceinline__ int dq_index(int four, int threads) { return (four * threads + threadIdx.x) * 4; }

// The first block of queries of a sequence in dq_sum; blocks of different sequences do not meet.
__device__ __forceinline__ int64_t first_query_block(const SeqLayout& seq, const Sequence& sequence, int block_m) {
  return seq.packed() ? sequence.q_begin / block_m + sequence.index : 0;
}

// Where a block works.
struct BwdTile {
  Sequence sequence;
  int group, head;  // of the group
  int first_key, keys;
};

template <int kBlockN>
__device__ __forceinline__ BwdTile bwd_tile(const BwdArgs& args) {
  const AttentionShape& shape = args.p.shape;
  int64_t index = blockIdx.x;
  const int64_t tile = index % args.tiles;
  index /= args.tiles;
  BwdTile result;
  result.head = static_cast<int>(index % shape.heads_per_group);
  index /= shape.heads_per_group;
  result.group = static_cast<int>(index % shape.num_groups);
  index /= shape.num_groups;
  if (args.p.seq.packed()) {
    const SequenceTile found = find_tile(tile, args.p.seq.num_sequences, kBlockN, [&](int64_t s) {
      return int64_t{sequence_at(shape, args.p.seq, s).seqlen_k};
    });
    result.keys = 0;
    if (found.sequence < 0) return result;
    result.sequence = sequence_at(shape, args.p.seq, found.sequence);
    result.first_key = found.first_row;
  } else {
    result.sequence = sequence_at(shape, args.p.seq, index);
    result.first_key = static_cast<int>(tile) * kBlockN;
  }
  result.keys = min(kBlockN, result.sequence.seqlen_k - result.first_key);
  return result;
}

template <class T, BwdPolicy kPolicy>
class Backward {
  static constexpr int kDim = kPolicy.head_dim, kBlockM = kPolicy.block_m, kBlockN = kPolicy.block_n();
  static constexpr int kKeyTiles = kPolicy.key_tiles, kHalves = kPolicy.halves, kStages = kPolicy.stages;
  static constexpr int kQueries = kBlockM / kHalves, kQueryTiles = kQueries / 8;  // of a warp's scores
  static constexpr int kDims = kDim / kHalves, kDimTiles = kDims / 8;             // of a warp's dk and dv
  static constexpr int kThreads = kPolicy.threads();
  static constexpr bool kPlain = kPolicy.features == Features::kPlain,
                        kGeneral = kPolicy.features == Features::kGeneral;
  using Scores = float[kKeyTiles][kQueryTiles][4];

  const BwdArgs& args_;
  const AttentionBwdParams& p_;
  const BwdTile& tile_;
  const Band band_;
  uint32_t smem_k_, smem_v_, smem_q_, smem_dout_, smem_ds_, smem_p_, smem_rows_;
  const float* rows_;                        // smem_rows_ as a pointer: [stages][lse, delta][block_m]
  int warp_key_, warp_query_, warp_chunk2_;  // first key, query and pair of dim chunks of this warp
  int64_t head_row_;                         // (batch * num_heads + head) * seqlen_q
  int64_t first_dq_block_;
  float acc_dk_[kKeyTiles][kDimTiles][4] = {}, acc_dv_[kKeyTiles][kDimTiles][4] = {};

 public:
  __device__ __forceinline__ Backward(const BwdArgs& args, const BwdTile& tile, unsigned char* smem)
      : args_(args), p_(args.p), tile_(tile), band_(args.p.band, tile.sequence) {
    smem_k_ = shared_address(smem);
    smem_v_ = smem_k_ + kPolicy.tile_bytes(kBlockN);
    smem_q_ = smem_v_ + kPolicy.tile_bytes(kBlockN);
    smem_dout_ = smem_q_ + kStages * kPolicy.tile_bytes(kBlockM);
    smem_ds_ = smem_dout_ + kStages * kPolicy.tile_bytes(kBlockM);
    smem_p_ = smem_ds_ + (kHalves - 1) * kPolicy.scores_bytes();
    smem_rows_ = smem_p_ + kPolicy.scores_bytes();
    rows_ = reinterpret_cast<const float*>(smem + (smem_rows_ - smem_k_));
    const int warp = threadIdx.x / 32, key_warps = kPolicy.warps / kHalves;
    warp_key_ = warp % key_warps * 16 * kKeyTiles;
    warp_query_ = warp / key_warps * kQueries;
    warp_chunk2_ = warp / key_warps * (kDims / 16);
    const AttentionShape& shape = p_.shape;
    const int64_t head = (tile.sequence.batch * shape.num_groups + tile.group) * shape.heads_per_group + tile.head;
    head_row_ = head * shape.seqlen_q;
    first_dq_block_ = head * args.query_blocks + first_query_block(p_.seq, tile.sequence, kBlockM);
  }

  __device__ __forceinline__ void run() {
    const Range keys{tile_.first_key, tile_.first_key + tile_.keys};
    const Range queries = band_.query_range(keys);
    const int first = queries.begin / kBlockM, last = queries.empty() ? 0 : ceil_div(queries.end, kBlockM);
    if (first < last) {
      load_keys(smem_k_, p_.k, p_.shape.head_dim);
      load_keys(smem_v_, p_.v, p_.shape.head_dim_v);
      load_queries(first, 0);
      copy_async_commit();
      int stage = 0;
#pragma unroll 1
      for (int block = first; block < last; ++block) {
        copy_async_wait<0>();
        __syncthreads();  // this block is there; everybody is done with the one before
        if constexpr (kPolicy.features == Features::kScored) {
          if (p_.bias.data) load_bias(block);
          copy_async_commit();
        }
        if (kStages > 1) {
          if (block + 1 < last) load_queries(block + 1, stage ^ 1);
          copy_async_commit();
        }
        step(block, stage);
        if (kStages > 1) {
          stage ^= 1;
        } else if (block + 1 < last) {
          __syncthreads();
          load_queries(block + 1, 0);
          copy_async_commit();
        }
      }
    }
    write_keys(p_.dk, acc_dk_, static_cast<float>(p_.softmax_scale), p_.shape.head_dim);
    write_keys(p_.dv, acc_dv_, static_cast<float>(args_.kept), p_.shape.head_dim_v);
  }

 private:
  __device__ __forceinline__ int64_t heads_offset(const HeadsTensor& tensor) const {
    return tile_.sequence.batch * tensor.batch_stride + tile_.group * tensor.group_stride +
           tile_.head * tensor.head_stride;
  }

  template <int kRows>
  __device__ __forceinline__ void load(uint32_t to, const HeadsTensor& tensor, int64_t first_row, int rows, int dim) {
    const T* from = static_cast<const T*>(tensor.data) + heads_offset(tensor) + first_row * tensor.seq_stride;
    if (!kGeneral || args_.aligned) {
      load_rows<kRows, kDim, kThreads>(to, from, tensor.seq_stride, rows, dim);
    } else {
      for_each_chunk<kRows, kDim, kThreads, 2>(to, [&](int row, int chunk, uint32_t to) {
        const bool valid = row < rows && chunk * kChunk < dim;
        store_shared_16(to,
                        valid ? load_chunk(from + row * tensor.seq_stride + chunk * kChunk, dim - chunk * kChunk, false)
                              : uint4{0, 0, 0, 0});
      });
    }
  }
  __device__ __forceinline__ void load_keys(uint32_t to, const HeadsTensor& tensor, int64_t dim) {
    load<kBlockN>(to, tensor, tile_.sequence.k_begin + tile_.first_key, tile_.keys, static_cast<int>(dim));
  }
  // Rows past the sequence are zeros everywhere: they add nothing.
  __device__ __forceinline__ void load_queries(int block, int stage) {
    const int rows = tile_.sequence.seqlen_q - block * kBlockM;
    const int64_t first = tile_.sequence.q_begin + block * kBlockM;
    load<kBlockM>(smem_q_ + stage * kPolicy.tile_bytes(kBlockM), p_.q, first, rows,
                  static_cast<int>(p_.shape.head_dim));
    load<kBlockM>(smem_dout_ + stage * kPolicy.tile_bytes(kBlockM), p_.dout, first, rows,
                  static_cast<int>(p_.shape.head_dim_v));
    const int row = threadIdx.x % kBlockM, which = threadIdx.x / kBlockM;
    if (which < 2) {
      const float* from = static_cast<const float*>(which ? args_.delta : args_.lse);
      const bool valid = row < rows;
      copy_async_4(smem_rows_ + 4 * ((stage * 2 + which) * kBlockM + row),
                   valid ? from + head_row_ + first + row : from, valid);
    }
  }

  __device__ __forceinline__ void step(int block, int stage) {
    const uint32_t q = smem_q_ + stage * kPolicy.tile_bytes(kBlockM);
    const uint32_t dout = smem_dout_ + stage * kPolicy.tile_bytes(kBlockM);
    Scores scores, dprobs;
    multiply_transposed(scores, smem_k_, q);
    multiply_transposed(dprobs, smem_v_, dout);
    if constexpr (!kPlain) scale_and_add_bias(scores, block);
    differentiate(scores, dprobs, block, stage);
    uint32_t p[kKeyTiles][kQueryTiles][2], ds[kKeyTiles][kQueryTiles][2];
    pack_all(p, scores);
    pack_all(ds, dprobs);
    store(smem_ds_, ds);
    if constexpr (kHalves == 1) {
      accumulate(acc_dv_, p, dout);
      accumulate(acc_dk_, ds, q);
      __syncthreads();  // dS is there
    } else {
      store(smem_p_, p);
      __syncthreads();  // P and dS are there
      accumulate_shared(acc_dv_, smem_p_, dout);
      accumulate_shared(acc_dk_, smem_ds_, q);
    }
    add_dq(block);
  }

  // scores[keys, queries] = left[keys, dim] right[queries, dim]^T of this warp's part.
  __device__ __forceinline__ void multiply_transposed(Scores& scores, uint32_t left, uint32_t right) {
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[k][m][i] = 0;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t a[kKeyTiles][4];
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k) load_a<kDim>(a[k], left, warp_key_ + k * 16, d);
#pragma unroll
      for (int m = 0; m < kQueryTiles; m += 2) {
        uint32_t b[4];
        load_b<kDim>(b, right, warp_query_ + m * 8, d);
#pragma unroll
        for (int k = 0; k < kKeyTiles; ++k) {
          mma<T>(scores[k][m], a[k], b[0], b[1]);
          mma<T>(scores[k][m + 1], a[k], b[2], b[3]);
        }
      }
    }
  }

  // Bias of a block of queries and this tile's keys, [block_m][block_n], in the memory that dS will take.
  __device__ __forceinline__ void load_bias(int block) {
    const T* bias = static_cast<const T*>(p_.bias.data) + bias_offset(p_.bias, block * kBlockM, tile_.first_key);
    const int rows = tile_.sequence.seqlen_q - block * kBlockM;
    for_each_chunk<kBlockM, kBlockN, kThreads>(smem_ds_, [&](int row, int chunk, uint32_t to) {
      const int keys = tile_.keys - chunk * kChunk;
      const bool valid = row < rows && keys > 0;
      copy_async_part(to, valid ? bias + row * p_.bias.q_stride + chunk * kChunk : bias,
                      valid ? min(keys, kChunk) * static_cast<int>(sizeof(T)) : 0);
    });
  }

  __device__ __forceinline__ void scale_and_add_bias(Scores& scores, int block) {
    const bool staged = !kGeneral && p_.bias.data != nullptr;
    if (staged) {
      copy_async_wait<(kStages > 1 ? 1 : 0)>();
      __syncthreads();  // the bias is there
    }
#pragma unroll
    for (int m = 0; m < kQueryTiles; m += 2) {
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k) {
        uint32_t bias[4] = {};  // keys, keys + 8, then the next eight queries
        if (staged) load_a_transposed<kBlockN>(bias, smem_ds_, warp_query_ + m * 8, warp_key_ / 16 + k);
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          float2 pair = unpack<T>(bias[part]);
          if constexpr (kGeneral) {
            const int lane = threadIdx.x % 32;
            const int query = block * kBlockM + warp_query_ + (m + part / 2) * 8 + lane % 4 * 2;
            const int key = tile_.first_key + warp_key_ + k * 16 + part % 2 * 8 + lane / 4;
            pair = {bias_at(query, key), bias_at(query + 1, key)};
          }
          float* s = &scores[k][m + part / 2][part % 2 * 2];
          s[0] = fmaf(s[0], args_.scale_log2, pair.x * kLog2e);
          s[1] = fmaf(s[1], args_.scale_log2, pair.y * kLog2e);
        }
      }
    }
    if (staged) __syncthreads();  // everybody has read it
  }

  // scores -> P (what dropout leaves of it), dprobs -> dS.
  __device__ __forceinline__ void differentiate(Scores& scores, Scores& dprobs, int block, int stage) {
    const int lane = threadIdx.x % 32, first_query = block * kBlockM;
    const bool full = band_.is_full({first_query, first_query + kBlockM}, {tile_.first_key, tile_.first_key + kBlockN});
    const float* lse = rows_ + stage * 2 * kBlockM;
    const float* delta = lse + kBlockM;
#pragma unroll
    for (int m = 0; m < kQueryTiles; ++m) {
      const int local = warp_query_ + m * 8 + lane % 4 * 2, query = first_query + local;  // of element 0; 1 is the next
      const float2 lse2 = *reinterpret_cast<const float2*>(lse + local);
      const float2 delta2 = *reinterpret_cast<const float2*>(delta + local);
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k) {
        const int first_key = tile_.first_key + warp_key_ + k * 16, key = first_key + lane / 4;
        bool keep[4] = {true, true, true, true};
        if constexpr (!kPlain) {
          if (p_.dropout.p > 0) {
            const uint32_t sequence_head = static_cast<uint32_t>(tile_.sequence.index * p_.shape.num_heads() +
                                                                 tile_.group * p_.shape.heads_per_group + tile_.head);
            keep_transposed(keep, DropoutDraws(p_.dropout), first_key, first_query + warp_query_ + m * 8,
                            sequence_head);
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& s = scores[k][m][i];
          const float lse_here = i & 1 ? lse2.y : lse2.x;
          s = fast_exp2(kPlain ? fmaf(s, args_.scale_log2, -lse_here) : s - lse_here);
        }
        if (!full) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (!band_.visible(query + (i & 1), key + (i >> 1) * 8)) scores[k][m][i] = 0;
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float &p = scores[k][m][i], &ds = dprobs[k][m][i];
          const float kept = kPlain ? 1.0f : keep[i] ? static_cast<float>(args_.kept) : 0.0f;
          ds = p * (ds * kept - (i & 1 ? delta2.y : delta2.x));
          p = keep[i] ? p : 0.0f;
          if constexpr (kGeneral) store_dbias(ds, query + (i & 1), key + (i >> 1) * 8);
        }
      }
    }
  }

  __device__ __forceinline__ int64_t bias_offset(const ScoreBias& bias, int query, int key) const {
    return tile_.sequence.batch * bias.batch_stride + tile_.group * bias.group_stride + tile_.head * bias.head_stride +
           query * bias.q_stride + key * bias.k_stride;
  }
  __device__ __forceinline__ bool inside(int query, int key) const {
    return query < tile_.sequence.seqlen_q && key < tile_.sequence.seqlen_k;
  }
  __device__ __forceinline__ float bias_at(int query, int key) const {
    if (!p_.bias.data || !inside(query, key)) return 0;
    return to_float(static_cast<const T*>(p_.bias.data)[bias_offset(p_.bias, query, key)]);
  }
  __device__ __forceinline__ void store_dbias(float ds, int query, int key) const {
    if (!p_.dbias.data || !inside(query, key)) return;
    static_cast<T*>(p_.dbias.data)[bias_offset(p_.dbias, query, key)] = to_element<T>(ds);
  }

  // dS [16 queries, 16 keys] as an A operand.
  __device__ __forceinline__ void store_dbias_pairs(const uint32_t (&ds)[4], int query, int key) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at_query = query + i % 2 * 8 + lane / 4, at_key = key + i / 2 * 8 + lane % 4 * 2;
      if (at_query >= tile_.sequence.seqlen_q || at_key >= tile_.keys) continue;
      T* to = static_cast<T*>(p_.dbias.data) + bias_offset(p_.dbias, at_query, tile_.first_key + at_key);
      if (at_key + 1 < tile_.keys) {
        *reinterpret_cast<uint32_t*>(to) = ds[i];
      } else {
        *to = reinterpret_cast<const T*>(&ds[i])[0];
      }
    }
  }

  __device__ __forceinline__ void pack_all(uint32_t (&to)[kKeyTiles][kQueryTiles][2], const Scores& from) {
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m) {
        to[k][m][0] = pack<T>(from[k][m][0], from[k][m][1]);
        to[k][m][1] = pack<T>(from[k][m][2], from[k][m][3]);
      }
  }
  // Into a tile [block_n, block_m].
  __device__ __forceinline__ void store(uint32_t to, const uint32_t (&from)[kKeyTiles][kQueryTiles][2]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
      for (int m = 0; m < kQueryTiles; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = warp_key_ + k * 16 + half * 8 + lane / 4, chunk = warp_query_ / 8 + m;
          store_shared_4(to + TileLayout<kBlockM>::offset(row, chunk) + lane % 4 * 4, from[k][m][half]);
        }
  }

  // acc[keys, dims] += left[keys, queries] right[queries, dims]
  __device__ __forceinline__ void accumulate(float (&acc)[kKeyTiles][kDimTiles][4],
                                             const uint32_t (&left)[kKeyTiles][kQueryTiles][2], uint32_t right) {
#pragma unroll
    for (int m = 0; m < kQueryTiles; m += 2) {
#pragma unroll
      for (int d = 0; d < kDimTiles; d += 2) {
        uint32_t b[4];
        load_b_transposed<kDim>(b, right, m * 8, d / 2);
#pragma unroll
        for (int k = 0; k < kKeyTiles; ++k) {
          const uint32_t a[4] = {left[k][m][0], left[k][m][1], left[k][m + 1][0], left[k][m + 1][1]};
          mma<T>(acc[k][d], a, b[0], b[1]);
          mma<T>(acc[k][d + 1], a, b[2], b[3]);
        }
      }
    }
  }
  __device__ __forceinline__ void accumulate_shared(float (&acc)[kKeyTiles][kDimTiles][4], uint32_t left,
                                                    uint32_t right) {
#pragma unroll
    for (int m = 0; m < kBlockM / 16; ++m) {
      uint32_t a[kKeyTiles][4];
#pragma unroll
      for (int k = 0; k < kKeyTiles; ++k) load_a<kBlockM>(a[k], left, warp_key_ + k * 16, m);
#pragma unroll
      for (int d = 0; d < kDimTiles; d += 2) {
        uint32_t b[4];
        load_b_transposed<kDim>(b, right, m * 16, warp_chunk2_ + d / 2);
#pragma unroll
        for (int k = 0; k < kKeyTiles; ++k) {
          mma<T>(acc[k][d], a[k], b[0], b[1]);
          mma<T>(acc[k][d + 1], a[k], b[2], b[3]);
        }
      }
    }
  }

  // dq_sum[queries, dims] += dS[queries, keys] K[keys, dims]
  __device__ __forceinline__ void add_dq(int block) {
    constexpr int kRowWarps = kPolicy.dq_row_warps(), kRowTiles = kPolicy.dq_row_tiles(),
                  kTiles = kPolicy.dq_dim_tiles();
    static_assert(kTiles % 2 == 0);
    constexpr int kPairs = kTiles / 2;
    const int warp = threadIdx.x / 32, chunk2_tile = warp / kRowWarps * kTiles;
    const int row_tile = warp % kRowWarps * kRowTiles;
    float acc[kRowTiles][kTiles][4] = {};
#pragma unroll
    for (int n = 0; n < kBlockN / 16; ++n) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) load_a_transposed<kBlockM>(a[r], smem_ds_, n * 16, row_tile + r);
      if constexpr (kPolicy.features == Features::kScored) {
        if (p_.dbias.data && n % (kPolicy.warps / kRowWarps) == warp / kRowWarps) {
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) store_dbias_pairs(a[r], block * kBlockM + (row_tile + r) * 16, n * 16);
        }
      }
#pragma unroll
      for (int d = 0; d < kPairs; ++d) {
        uint32_t b[4];
        load_b_transposed<kDim>(b, smem_k_, n * 16, chunk2_tile / 2 + d);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma<T>(acc[r][2 * d], a[r], b[0], b[1]);
          mma<T>(acc[r][2 * d + 1], a[r], b[2], b[3]);
        }
      }
    }
    float* to = args_.dq_sum + (first_dq_block_ + block) * (kBlockM * kDim);
    int* turn = args_.turns ? args_.turns + first_dq_block_ + block : nullptr;
    if (turn) await_turn(turn, block);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int d = 0; d < kTiles; ++d)
        add_global_4(to + dq_index(r * kTiles + d, kThreads), acc[r][d][0], acc[r][d][1], acc[r][d][2], acc[r][d][3]);
    if (turn) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) atomicAdd(turn, 1);
    }
  }

  // Key tiles add to a block of queries one after the other. Tiles before this one were launched before it.
  __device__ __forceinline__ void await_turn(int* turn, int block) {
    const int end = min((block + 1) * kBlockM, tile_.sequence.seqlen_q);
    const int mine = tile_.first_key / kBlockN - band_.key_range({block * kBlockM, end}).begin / kBlockN;
    if (threadIdx.x == 0) {
      while (*static_cast<volatile int*>(turn) < mine) __nanosleep(20);
      __threadfence();
    }
    __syncthreads();
  }

  __device__ __forceinline__ void write_keys(const HeadsTensor& tensor, const float (&acc)[kKeyTiles][kDimTiles][4],
                                             float factor, int64_t dim) {
    const int lane = threadIdx.x % 32;
    T* const to = static_cast<T*>(tensor.data) + heads_offset(tensor);
#pragma unroll
    for (int k = 0; k < kKeyTiles; ++k)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = warp_key_ + k * 16 + half * 8 + lane / 4;
        if (key >= tile_.keys) continue;
        T* row = to + (tile_.sequence.k_begin + tile_.first_key + key) * tensor.seq_stride;
#pragma unroll
        for (int d = 0; d < kDimTiles; ++d) {
          const int at = warp_chunk2_ * 16 + d * 8 + lane % 4 * 2;
          const float x = acc[k][d][half * 2] * factor, y = acc[k][d][half * 2 + 1] * factor;
          if (args_.aligned && at + 1 < dim) {
            *reinterpret_cast<uint32_t*>(row + at) = pack<T>(x, y);
          } else {
            if (at < dim) row[at] = to_element<T>(x);
            if (at + 1 < dim) row[at + 1] = to_element<T>(y);
          }
        }
      }
  }

  static constexpr float kLog2e = 1.4426950408889634f;
};

template <class T, int kHeadDim, Features kFeatures>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, kFeatures).threads(),
                                  bwd_policy(kHeadDim, kFeatures).blocks_per_sm())
    attention_bwd_sm80(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kFeatures);
  extern __shared__ __align__(128) unsigned char smem[];
  const BwdTile tile = bwd_tile<kPolicy.block_n()>(args);
  if (tile.keys <= 0) return;
  Backward<T, kPolicy> backward(args, tile, smem);
  backward.run();
}

// dq = softmax_scale * dq_sum, one block per (head, block of queries).
template <class T, int kHeadDim, Features kFeatures>
__global__ void __launch_bounds__(bwd_policy(kHeadDim, kFeatures).threads())
    attention_bwd_dq_sm80(const __grid_constant__ BwdArgs args) {
  constexpr BwdPolicy kPolicy = bwd_policy(kHeadDim, kFeatures);
  constexpr int kTiles = kPolicy.dq_dim_tiles(), kRowTiles = kPolicy.dq_row_tiles(), kRowWarps = kPolicy.dq_row_warps();
  const AttentionBwdParams& p = args.p;
  int64_t index = blockIdx.x;
  int64_t block = index % args.query_blocks;
  index /= args.query_blocks;  // head in the whole
  Sequence sequence;
  const int64_t head = index % p.shape.heads_per_group, group = index / p.shape.heads_per_group % p.shape.num_groups;
  int64_t place = blockIdx.x;
  if (p.seq.packed()) {
    const SequenceTile found = find_tile(block, p.seq.num_sequences, kPolicy.block_m,
                                         [&](int64_t s) { return int64_t{sequence_at(p.shape, p.seq, s).seqlen_q}; });
    if (found.sequence < 0) return;
    sequence = sequence_at(p.shape, p.seq, found.sequence);
    block = found.first_row / kPolicy.block_m;
    place = index * args.query_blocks + first_query_block(p.seq, sequence, kPolicy.block_m) + block;
  } else {
    sequence = sequence_at(p.shape, p.seq, index / p.shape.num_heads());
  }
  const float* from = args.dq_sum + place * (kPolicy.block_m * kHeadDim);
  const float scale = static_cast<float>(p.softmax_scale);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T* const to = static_cast<T*>(p.dq.data) + sequence.batch * p.dq.batch_stride + group * p.dq.group_stride +
                head * p.dq.head_stride;
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int d = 0; d < kTiles; ++d) {
      const float4 sums = *reinterpret_cast<const float4*>(from + dq_index(r * kTiles + d, kPolicy.threads()));
      const int dim = (warp / kRowWarps * kTiles + d) * 8 + lane % 4 * 2;
      const auto write = [&](int row, float x, float y) {
        const int64_t query = block * kPolicy.block_m + (warp % kRowWarps * kRowTiles + r) * 16 + row;
        if (query >= sequence.seqlen_q) return;
        T* at = to + (sequence.q_begin + query) * p.dq.seq_stride + dim;
        if (args.aligned && dim + 1 < p.shape.head_dim) {
          *reinterpret_cast<uint32_t*>(at) = pack<T>(x * scale, y * scale);
        } else {
          if (dim < p.shape.head_dim) at[0] = to_element<T>(x * scale);
          if (dim + 1 < p.shape.head_dim) at[1] = to_element<T>(y * scale);
        }
      };
      write(lane / 4, sums.x, sums.y);
      write(lane / 4 + 8, sums.z, sums.w);
    }
}

}  // namespace xformers::cuda::sm80
