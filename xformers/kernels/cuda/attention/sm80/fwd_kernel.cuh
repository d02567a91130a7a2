// Forward on tensor cores (mma.sync), one block per tile of query rows:
//
//   load Q
//   for blocks of keys:  load V | S = Q K^T;  load the next K | bias, mask, online softmax, dropout;  O += P V
//   write out and lse, or this split's partial results
//
// A row is a (query, head) pair: heads of a group that share K and V lie side by side in one tile. Each warp owns
// 16 * row_tiles rows and all keys; a lane holds rows lane / 4 and + 8 of each row tile. Shared memory: Q, K, V.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/dropout.cuh"
#include "xformers/kernels/cuda/attention/fwd_args.h"
#include "xformers/kernels/cuda/attention/mask.cuh"
#include "xformers/kernels/cuda/attention/quantised_rows.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80/tile.cuh"

namespace xformers::cuda::sm80 {

inline constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Where a block works.
struct FwdTile {
  Sequence sequence;
  int group, first_head;  // of the group; all heads of the group if packed
  int first_row, rows;    // of the sequence's seqlen_q * packed_heads; rows inside
};

template <FwdPolicy kPolicy>
__device__ __forceinline__ FwdTile fwd_tile(const FwdArgs& args) {
  const AttentionShape& shape = args.p.shape;
  const int packed_heads = args.packed_heads;
  int64_t index = blockIdx.x;
  // Tiles of one head are neighbours, and those at the end come first: with causal masks they have most to do.
  int64_t tile = args.tiles - 1 - index % args.tiles;
  index /= args.tiles;
  FwdTile result;
  if (packed_heads > 1) {
    result.group = static_cast<int>(index % shape.num_groups), result.first_head = 0;
    index /= shape.num_groups;
  } else {
    result.first_head = static_cast<int>(index % shape.heads_per_group);
    index /= shape.heads_per_group;
    result.group = static_cast<int>(index % shape.num_groups);
    index /= shape.num_groups;
  }
  if (args.p.seq.packed()) {
    const SequenceTile found = find_tile(tile, args.p.seq.num_sequences, kPolicy.block_m(), [&](int64_t s) {
      return int64_t{sequence_at(shape, args.p.seq, s).seqlen_q} * packed_heads;
    });
    result.rows = 0;
    if (found.sequence < 0) return result;
    result.sequence = sequence_at(shape, args.p.seq, found.sequence);
    result.first_row = found.first_row;
  } else {
    result.sequence = sequence_at(shape, args.p.seq, index);
    result.first_row = static_cast<int>(tile) * kPolicy.block_m();
  }
  result.rows = min(kPolicy.block_m(), result.sequence.seqlen_q * packed_heads - result.first_row);
  return result;
}

// K or V of one sequence and group, by tiles of keys.
template <class T, FwdPolicy kPolicy>
struct KeyTiles {
  const AttentionFwdParams& p;
  const HeadsTensor& tensor;
  const HeadsTensor& coefficients;
  const Sequence& sequence;
  int group, head, dim;
  bool aligned;
  int64_t origin;  // of batch row, group, head

  __device__ KeyTiles(const FwdArgs& args, const HeadsTensor& tensor, const HeadsTensor& coefficients,
                      const FwdTile& tile, int64_t dim)
      : p(args.p),
        tensor(tensor),
        coefficients(coefficients),
        sequence(tile.sequence),
        group(tile.group),
        head(tile.first_head),
        dim(static_cast<int>(dim)),
        aligned(args.aligned_kv),
        origin(tile.sequence.batch * tensor.batch_stride + tile.group * tensor.group_stride +
               tile.first_head * tensor.head_stride) {}

  __device__ __forceinline__ void load(uint32_t to, int first_key) const {
    const int keys = sequence.seqlen_k - first_key;
    if constexpr (kPolicy.features != Features::kGeneral) {
      const T* from = static_cast<const T*>(tensor.data) + origin + (sequence.k_begin + first_key) * tensor.seq_stride;
      load_rows<kPolicy.block_n, kPolicy.head_dim, kPolicy.threads()>(to, from, tensor.seq_stride, keys, dim);
    } else if (p.quantization.format == KvFormat::kPlain) {
      const T* from = static_cast<const T*>(tensor.data) + origin;
      for_each_chunk<kPolicy.block_n, kPolicy.head_dim, kPolicy.threads(), 2>(to, [&](int row, int chunk, uint32_t to) {
        const bool valid = row < keys && chunk * kChunk < dim;
        const T* at = from;
        if (valid) at += key_row(p.shape, p.seq, sequence, first_key + row) * tensor.seq_stride + chunk * kChunk;
        if (aligned) {
          copy_async_16(to, at, valid);
        } else {
          store_shared_16(to, valid ? load_chunk(at, dim - chunk * kChunk, false) : uint4{0, 0, 0, 0});
        }
      });
    } else {
      const uint32_t* from = static_cast<const uint32_t*>(tensor.data) + origin;
      const uint32_t* from_coefficients = static_cast<const uint32_t*>(coefficients.data);
      if (from_coefficients) {
        from_coefficients += sequence.batch * coefficients.batch_stride + group * coefficients.group_stride +
                             head * coefficients.head_stride;
      }
      for_each_chunk<kPolicy.block_n, kPolicy.head_dim, kPolicy.threads(), 2>(to, [&](int row, int chunk, uint32_t to) {
        uint4 elements{0, 0, 0, 0};
        if (row < keys && chunk * kChunk < dim) {
          const int64_t at = key_row(p.shape, p.seq, sequence, first_key + row);
          elements =
              load_quantised_chunk<T>(from + at * tensor.seq_stride,
                                      from_coefficients ? from_coefficients + at * coefficients.seq_stride : nullptr,
                                      p.quantization, dim, chunk * kChunk);
        }
        store_shared_16(to, elements);
      });
    }
  }
};

template <class T, FwdPolicy kPolicy>
class Forward {
  static constexpr int kDim = kPolicy.head_dim, kRowTiles = kPolicy.row_tiles, kKeys = kPolicy.block_n;
  static constexpr int kKeyTiles = kKeys / 8, kDimTiles = kDim / 8;
  static constexpr bool kPlain = kPolicy.features == Features::kPlain,
                        kGeneral = kPolicy.features == Features::kGeneral;

  const FwdArgs& args_;
  const AttentionFwdParams& p_;
  const FwdTile& tile_;
  const Band band_;
  uint32_t smem_q_, smem_k_, smem_v_, smem_bias_;
  int warp_row_;  // first row of this warp in the tile
  float acc_o_[kRowTiles][kDimTiles][4] = {};
  float row_max_[kRowTiles][2], row_sum_[kRowTiles][2];  // of scores in units of 1 / scale_log2 (not kPlain: of 1)

 public:
  __device__ __forceinline__ Forward(const FwdArgs& args, const FwdTile& tile, uint32_t smem)
      : args_(args), p_(args.p), tile_(tile), band_(args.p.band, tile.sequence) {
    smem_q_ = smem;
    smem_k_ = smem_q_ + 2 * kDim * kPolicy.block_m();
    smem_v_ = smem_k_ + 2 * kDim * kKeys;
    smem_bias_ = smem_v_ + 2 * kDim * kKeys;
    warp_row_ = threadIdx.x / 32 * 16 * kRowTiles;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      for (int half = 0; half < 2; ++half) row_max_[r][half] = -INFINITY, row_sum_[r][half] = 0;
  }

  __device__ __forceinline__ void run() {
    const Range queries{query_of(tile_.first_row), query_of(tile_.first_row + tile_.rows - 1) + 1};
    Range keys = band_.key_range(queries);
    int first = keys.begin / kKeys, last = ceil_div(keys.end, kKeys);  // blocks of keys
    if (args_.out_partial) {
      const int per_split = ceil_div(max(last - first, 0), args_.num_splits);
      first += static_cast<int>(blockIdx.y) * per_split;
      last = min(last, first + per_split);
    }
    if (first < last) {
      const KeyTiles<T, kPolicy> k(args_, p_.k, p_.quantization.k_scale_shift, tile_, p_.shape.head_dim);
      const KeyTiles<T, kPolicy> v(args_, p_.v, p_.quantization.v_scale_shift, tile_, p_.shape.head_dim_v);
      load_q();
      k.load(smem_k_, first * kKeys);
      copy_async_commit();
#pragma unroll 1
      for (int block = first; block < last; ++block) {
        const int key = block * kKeys;
        copy_async_wait<0>();
        __syncthreads();  // K is there; everybody is done with V
        v.load(smem_v_, key);
        if constexpr (kPolicy.features == Features::kScored) load_bias(key);
        copy_async_commit();
        float acc_s[kRowTiles][kKeyTiles][4];
        multiply_scores(acc_s);
        copy_async_wait<0>();
        __syncthreads();  // V is there; everybody is done with K
        if (block + 1 < last) {
          k.load(smem_k_, key + kKeys);
          copy_async_commit();
        }
        if constexpr (!kPlain) scale_and_add_bias(acc_s, key);
        if (!band_.is_full(queries, {key, key + kKeys})) mask(acc_s, key);
        softmax(acc_s);
        if constexpr (!kPlain) {
          if (p_.dropout.p > 0) drop(acc_s, key);
        }
        accumulate(acc_s);
      }
    }
    finish();
  }

 private:
  __device__ __forceinline__ int query_of(int row) const {
    return args_.packed_heads == 1 ? row : row / args_.packed_heads;
  }
  __device__ __forceinline__ int head_of(int row) const {
    return args_.packed_heads == 1 ? tile_.first_head : row % args_.packed_heads;
  }
  // Row of the sequence that this lane holds.
  __device__ __forceinline__ int lane_row(int row_tile, int half) const {
    return tile_.first_row + warp_row_ + row_tile * 16 + half * 8 + threadIdx.x % 32 / 4;
  }
  __device__ __forceinline__ bool inside(int row) const { return row < tile_.first_row + tile_.rows; }

  __device__ __forceinline__ void load_q() {
    const int dim = static_cast<int>(p_.shape.head_dim);
    const T* q =
        static_cast<const T*>(p_.q.data) + tile_.sequence.batch * p_.q.batch_stride + tile_.group * p_.q.group_stride;
    for_each_chunk<kPolicy.block_m(), kDim, kPolicy.threads(), 2>(smem_q_, [&](int row, int chunk, uint32_t to) {
      const bool valid = row < tile_.rows && chunk * kChunk < dim;
      const T* from = q;
      if (valid) {
        const int at = tile_.first_row + row;
        from +=
            (tile_.sequence.q_begin + query_of(at)) * p_.q.seq_stride + head_of(at) * p_.q.head_stride + chunk * kChunk;
      }
      if (!kGeneral || args_.aligned_q) {
        copy_async_16(to, from, valid);
      } else {
        store_shared_16(to, valid ? load_chunk(from, dim - chunk * kChunk, false) : uint4{0, 0, 0, 0});
      }
    });
  }

  __device__ __forceinline__ void multiply_scores(float (&acc_s)[kRowTiles][kKeyTiles][4]) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc_s[r][n][i] = 0;
#pragma unroll
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) load_a<kDim>(a[r], smem_q_, warp_row_ + r * 16, d);
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t b[4];
        load_b<kDim>(b, smem_k_, n * 8, d);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma<T>(acc_s[r][n], a[r], b[0], b[1]);
          mma<T>(acc_s[r][n + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

  // Bias of the tile's rows and of keys [key, + kKeys): [block_m][kKeys].
  __device__ __forceinline__ void load_bias(int key) {
    if (!p_.bias.data) return;
    const T* bias = static_cast<const T*>(p_.bias.data) + tile_.sequence.batch * p_.bias.batch_stride +
                    tile_.group * p_.bias.group_stride + key;
    for_each_chunk<kPolicy.block_m(), kKeys, kPolicy.threads()>(smem_bias_, [&](int row, int chunk, uint32_t to) {
      const int at = tile_.first_row + row, keys = tile_.sequence.seqlen_k - key - chunk * kChunk;
      const bool valid = row < tile_.rows && keys > 0;
      copy_async_part(
          to,
          valid ? bias + head_of(at) * p_.bias.head_stride + query_of(at) * p_.bias.q_stride + chunk * kChunk : bias,
          valid ? min(keys, kChunk) * static_cast<int>(sizeof(T)) : 0);
    });
  }

  // Not plain: the scores are scaled here, since a bias comes between, or the scale may be negative.
  __device__ __forceinline__ void scale_and_add_bias(float (&acc_s)[kRowTiles][kKeyTiles][4], int key) {
    if constexpr (kGeneral) return add_any_bias(acc_s, key);
    const bool has_bias = p_.bias.data != nullptr;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int n = 0; n < kKeyTiles; n += 2) {
        uint32_t bias[4] = {};  // fragments lie as those of an A operand: rows, rows + 8, then the next eight keys
        if (has_bias) load_a<kKeys>(bias, smem_bias_, warp_row_ + r * 16, n / 2);
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float2 pair = unpack<T>(bias[part]);
          float* s = &acc_s[r][n + part / 2][part % 2 * 2];
          s[0] = fmaf(s[0], args_.scale_log2, pair.x * kLog2e);
          s[1] = fmaf(s[1], args_.scale_log2, pair.y * kLog2e);
        }
      }
    }
  }

  __device__ __forceinline__ void add_any_bias(float (&acc_s)[kRowTiles][kKeyTiles][4], int key) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(r, half);
        const bool has_bias = p_.bias.data != nullptr && inside(row);
        const int first = key + threadIdx.x % 4 * 2;
        const T* bias = nullptr;
        if (has_bias) {
          bias = static_cast<const T*>(p_.bias.data) + tile_.sequence.batch * p_.bias.batch_stride +
                 tile_.group * p_.bias.group_stride + head_of(row) * p_.bias.head_stride +
                 query_of(row) * p_.bias.q_stride + first * p_.bias.k_stride;
        }
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = acc_s[r][n][half * 2 + i];
            s *= args_.scale_log2;
            if (has_bias && first + n * 8 + i < tile_.sequence.seqlen_k) {
              s += to_float(bias[i * p_.bias.k_stride]) * kLog2e;
            }
          }
          bias += 8 * p_.bias.k_stride;
        }
      }
    }
  }

  __device__ __forceinline__ void mask(float (&acc_s)[kRowTiles][kKeyTiles][4], int key) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = query_of(lane_row(r, half));
        const int low = band_.first_key(query) - key,
                  high = min(band_.last_key(query) + 1, tile_.sequence.seqlen_k) - key;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int at = n * 8 + threadIdx.x % 4 * 2 + i;
            if (at < low || at >= high) acc_s[r][n][half * 2 + i] = -INFINITY;
          }
        }
      }
    }
  }

  // Scores become probabilities relative to row_max, a score near the running maximum: acc_o and row_sum are rescaled
  // only where the maximum has grown by more than a factor of 2^8, which numbers in fp32 and the 16-bit types have room
  // for.
  __device__ __forceinline__ void softmax(float (&acc_s)[kRowTiles][kKeyTiles][4]) {
    constexpr float kRoom = 8;
    const float scale = kPlain ? args_.scale_log2 : 1.0f;
    float largest[kRowTiles][2];
    bool grown = false;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float m = row_max_[r][half];
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) m = fmaxf(m, fmaxf(acc_s[r][n][half * 2], acc_s[r][n][half * 2 + 1]));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
        m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
        largest[r][half] = m;
        grown |= m * scale > row_max_[r][half] * scale + kRoom;
      }
    }
    if (__any_sync(0xffffffffu, grown)) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float shrink = fast_exp2(row_max_[r][half] * scale - origin(largest[r][half]) * scale);
          row_max_[r][half] = largest[r][half];
          row_sum_[r][half] *= shrink;
#pragma unroll
          for (int d = 0; d < kDimTiles; ++d) {
            acc_o_[r][d][half * 2] *= shrink;
            acc_o_[r][d][half * 2 + 1] *= shrink;
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float from = origin(row_max_[r][half]) * scale;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = acc_s[r][n][half * 2 + i];
            s = fast_exp2(fmaf(s, scale, -from));
            sum += s;
          }
        }
        row_sum_[r][half] += sum;
      }
    }
  }
  // A row that has seen no key keeps -inf; -inf minus itself would be NaN, so it is treated as 0.
  static __device__ __forceinline__ float origin(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

  __device__ __forceinline__ void drop(float (&acc_s)[kRowTiles][kKeyTiles][4], int key) {
    const DropoutDraws draws(p_.dropout);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      uint32_t query[2], sequence_head[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = lane_row(r, half);
        query[half] = static_cast<uint32_t>(query_of(row));
        sequence_head[half] = static_cast<uint32_t>(tile_.sequence.index * p_.shape.num_heads() +
                                                    tile_.group * p_.shape.heads_per_group + head_of(row));
      }
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        bool keep[4];
        keep_accumulator(keep, draws, key + n * 8, query, sequence_head);
#pragma unroll
        for (int i = 0; i < 4; ++i) acc_s[r][n][i] = keep[i] ? acc_s[r][n][i] : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void accumulate(const float (&acc_s)[kRowTiles][kKeyTiles][4]) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; n += 2) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        a[r][0] = pack<T>(acc_s[r][n][0], acc_s[r][n][1]);
        a[r][1] = pack<T>(acc_s[r][n][2], acc_s[r][n][3]);
        a[r][2] = pack<T>(acc_s[r][n + 1][0], acc_s[r][n + 1][1]);
        a[r][3] = pack<T>(acc_s[r][n + 1][2], acc_s[r][n + 1][3]);
      }
#pragma unroll
      for (int d = 0; d < kDimTiles; d += 2) {
        uint32_t b[4];
        load_b_transposed<kDim>(b, smem_v_, n * 8, d / 2);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          mma<T>(acc_o_[r][d], a[r], b[0], b[1]);
          mma<T>(acc_o_[r][d + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void finish() {
    const int dim_v = static_cast<int>(p_.shape.head_dim_v);
    const float scale = kPlain ? args_.scale_log2 : 1.0f;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = row_sum_[r][half];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        const int row = lane_row(r, half);
        if (!inside(row)) continue;
        const float inverse = sum > 0 ? static_cast<float>(args_.kept) / sum : 0.0f;
        const float lse = sum > 0 ? (row_max_[r][half] * scale + __log2f(sum)) * kLn2 : -INFINITY;
        const int64_t query = tile_.sequence.q_begin + query_of(row);
        const int head = head_of(row);
        const int64_t batch = tile_.sequence.batch;
        const bool writes_row = threadIdx.x % 4 == 0;
        if (args_.out_partial) {
          const int64_t at =
              blockIdx.y * args_.total_rows +
              ((batch * p_.shape.num_groups + tile_.group) * p_.shape.heads_per_group + head) * p_.shape.seqlen_q +
              query;
          if (writes_row) args_.lse_partial[at] = lse;
          write_row(args_.out_partial + at * dim_v, r, half, inverse, dim_v, dim_v % 2 == 0);
          continue;
        }
        if (writes_row && p_.lse.data) {
          static_cast<float*>(p_.lse.data)[batch * p_.lse.batch_stride + tile_.group * p_.lse.group_stride +
                                           head * p_.lse.head_stride + query] = lse;
        }
        if (args_.chunked_out) {
          stage_row(r, half, inverse);
          continue;
        }
        const int64_t at = batch * p_.out.batch_stride + query * p_.out.seq_stride + tile_.group * p_.out.group_stride +
                           head * p_.out.head_stride;
        if (p_.wide_out) {
          write_row(static_cast<float*>(p_.out.data) + at, r, half, inverse, dim_v, args_.aligned_out);
        } else {
          write_row(static_cast<T*>(p_.out.data) + at, r, half, inverse, dim_v, args_.aligned_out);
        }
      }
    }
    if (args_.chunked_out && !args_.out_partial) write_staged_rows(dim_v);
  }

  // Results as rows in shared memory, over this warp's rows of Q, which no other warp reads.
  __device__ __forceinline__ void stage_row(int r, int half, float factor) {
    const int lane = threadIdx.x % 32, row = warp_row_ + r * 16 + half * 8 + lane / 4;
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d) {
      store_shared_4(smem_q_ + TileLayout<kDim>::offset(row, d) + lane % 4 * 4,
                     pack<T>(acc_o_[r][d][half * 2] * factor, acc_o_[r][d][half * 2 + 1] * factor));
    }
  }
  __device__ __forceinline__ void write_staged_rows(int dim_v) {
    using Layout = TileLayout<kDim>;
    __syncwarp();
    T* const out =
        static_cast<T*>(p_.out.data) + tile_.sequence.batch * p_.out.batch_stride + tile_.group * p_.out.group_stride;
#pragma unroll 4
    for (int index = threadIdx.x % 32; index < 16 * kRowTiles * Layout::kChunks; index += 32) {
      const int local = warp_row_ + index / Layout::kChunks, chunk = index % Layout::kChunks;
      const int row = tile_.first_row + local;
      if (!inside(row) || chunk * kChunk >= dim_v) continue;
      T* const to = out + (tile_.sequence.q_begin + query_of(row)) * p_.out.seq_stride +
                    head_of(row) * p_.out.head_stride + chunk * kChunk;
      *reinterpret_cast<uint4*>(to) = load_shared_16(smem_q_ + Layout::offset(local, chunk));
    }
  }

  template <class Out>
  __device__ __forceinline__ void write_row(Out* to, int r, int half, float factor, int dim_v, bool aligned) {
#pragma unroll
    for (int d = 0; d < kDimTiles; ++d) {
      const int at = d * 8 + threadIdx.x % 4 * 2;
      const float x = acc_o_[r][d][half * 2] * factor, y = acc_o_[r][d][half * 2 + 1] * factor;
      if (aligned && at + 1 < dim_v) {
        if constexpr (std::is_same_v<Out, float>) {
          *reinterpret_cast<float2*>(to + at) = {x, y};
        } else {
          *reinterpret_cast<uint32_t*>(to + at) = pack<T>(x, y);
        }
      } else {
        if (at < dim_v) to[at] = to_element<Out>(x);
        if (at + 1 < dim_v) to[at + 1] = to_element<Out>(y);
      }
    }
  }
};

// (nvcc's host stub of a kernel can't be a template over a struct, so the policy is made here.)
template <class T, int kHeadDim, Features kFeatures>
__global__ void __launch_bounds__(fwd_policy(kHeadDim, kFeatures).threads(),
                                  fwd_policy(kHeadDim, kFeatures).blocks_per_sm())
    attention_fwd_sm80(const __grid_constant__ FwdArgs args) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, kFeatures);
  extern __shared__ __align__(128) unsigned char smem[];
  const FwdTile tile = fwd_tile<kPolicy>(args);
  if (tile.rows <= 0) return;
  Forward<T, kPolicy> forward(args, tile, shared_address(smem));
  forward.run();
}

}  // namespace xformers::cuda::sm80
