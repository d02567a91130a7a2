// From global to shared memory: the tile of Q, tiles of K and V, tiles of bias.
#pragma once

#include "xformers/kernels/cuda/attention/quantised_rows.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_tile.cuh"
#include "xformers/kernels/cuda/attention/sm80/tile.cuh"

namespace xformers::cuda::sm80 {

template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void load_q(uint32_t to, const FwdGrid& args, const FwdTile& tile) {
  const HeadsTensor& tensor = args.p.q;
  const int dim = static_cast<int>(args.p.shape.head_dim);
  const T* q = static_cast<const T*>(tensor.data) + tile.sequence.batch * tensor.batch_stride +
               tile.group * tensor.group_stride + tile.sequence.q_begin * tensor.seq_stride;
  if (kPolicy.features != Features::kGeneral && args.packed_heads.size() == 1) {
    q += tile.head * tensor.head_stride + tile.first * tensor.seq_stride;
    return load_rows<kPolicy.block_m(), kPolicy.head_dim, kPolicy.threads()>(to, q, tensor.seq_stride, tile.rows, dim);
  }
  for_each_chunk<kPolicy.block_m(), kPolicy.head_dim, kPolicy.threads(), 2>(to, [&](int row, int chunk, uint32_t to) {
    const bool valid = row < tile.rows && chunk * kChunk < dim;
    const T* from = q;
    if (valid) {
      const int at = tile.first + row;
      const TileRows rows = rows_of(args, tile);
      from += rows.query_of(at) * tensor.seq_stride + rows.head_of(at) * tensor.head_stride + chunk * kChunk;
    }
    if (kPolicy.features != Features::kGeneral || args.aligned_q) {
      copy_async_16(to, from, valid);
    } else {
      store_shared_16(to, valid ? load_chunk(from, dim - chunk * kChunk, false) : uint4{0, 0, 0, 0});
    }
  });
}

// K or V of one sequence and group, by tiles of keys.
template <class T, FwdPolicy kPolicy>
class KeyTiles {
 public:
  __device__ __forceinline__ KeyTiles(const FwdArgs& args, const HeadsTensor& tensor, const HeadsTensor& coefficients,
                                      const FwdTile& tile, const int64_t& origin, const int64_t& dim)
      : p_(args.p),
        tensor_(tensor),
        coefficients_(coefficients),
        tile_(tile),
        origin_(origin),
        dim_(dim),
        aligned_(args.aligned_kv) {}

  // Not `wanted`: nothing is read, without a branch that would keep the code before it and behind it apart.
  __device__ __forceinline__ void load(uint32_t to, int first_key, bool wanted = true) const {
    if constexpr (kPolicy.features != Features::kGeneral) {
      const T* from =
          static_cast<const T*>(tensor_.data) + origin_ + (tile_.sequence.k_begin + first_key) * tensor_.seq_stride;
      load_rows<kPolicy.block_n, kPolicy.head_dim, kPolicy.threads()>(
          to, from, tensor_.seq_stride, wanted ? tile_.sequence.seqlen_k - first_key : 0, static_cast<int>(dim_));
    } else if (wanted && p_.quantization.format == KvFormat::kPlain) {
      load_any(to, first_key);
    } else if (wanted) {
      load_quantised(to, first_key);
    }
  }

 private:
  // Pages, rows that are not in units of 16 bytes.
  __device__ __forceinline__ void load_any(uint32_t to, int first_key) const {
    const T* from = static_cast<const T*>(tensor_.data) + origin_;
    for_each_chunk<kPolicy.block_n, kPolicy.head_dim, kPolicy.threads(), 2>(to, [&](int row, int chunk, uint32_t to) {
      const bool valid = first_key + row < tile_.sequence.seqlen_k && chunk * kChunk < dim_;
      const T* at = from;
      if (valid) {
        at += key_row(p_.shape, p_.seq, tile_.sequence, first_key + row) * tensor_.seq_stride + chunk * kChunk;
      }
      if (aligned_) {
        copy_async_16(to, at, valid);
      } else {
        store_shared_16(to, valid ? load_chunk(at, static_cast<int>(dim_) - chunk * kChunk, false) : uint4{0, 0, 0, 0});
      }
    });
  }
  __device__ __forceinline__ void load_quantised(uint32_t to, int first_key) const {
    const uint32_t* from = static_cast<const uint32_t*>(tensor_.data) + origin_;
    const uint32_t* from_coefficients = static_cast<const uint32_t*>(coefficients_.data);
    if (from_coefficients) {
      from_coefficients += tile_.offset(coefficients_);
    }
    for_each_chunk<kPolicy.block_n, kPolicy.head_dim, kPolicy.threads(), 2>(to, [&](int row, int chunk, uint32_t to) {
      uint4 elements{0, 0, 0, 0};
      if (first_key + row < tile_.sequence.seqlen_k && chunk * kChunk < dim_) {
        const int64_t at = key_row(p_.shape, p_.seq, tile_.sequence, first_key + row);
        elements =
            load_quantised_chunk<T>(from + at * tensor_.seq_stride,
                                    from_coefficients ? from_coefficients + at * coefficients_.seq_stride : nullptr,
                                    p_.quantization, static_cast<int>(dim_), chunk * kChunk);
      }
      store_shared_16(to, elements);
    });
  }

  const AttentionFwdParams& p_;
  const HeadsTensor &tensor_, &coefficients_;
  const FwdTile& tile_;
  const int64_t &origin_, &dim_;
  bool aligned_;
};

// Bias of one warp's rows and keys, rows in units of 16 bytes: each warp loads its own, so that it may load the next
// tile as soon as it has read this one.
template <class T, FwdPolicy kPolicy>
class BiasTiles {
 public:
  static constexpr int kKeys = kPolicy.warp_keys(), kRows = kPolicy.warp_rows();

  // `smem`: of the block's tiles.
  __device__ __forceinline__ BiasTiles(const FwdGrid& args, const FwdTile& tile, const WarpPart<kPolicy>& warp,
                                       uint32_t smem)
      : args_(args), tile_(tile), warp_(warp), smem_(smem + warp.warp * (2 * kRows * kKeys)) {}

  __device__ __forceinline__ bool present() const { return args_.p.mods.bias.data != nullptr; }
  __device__ __forceinline__ uint32_t tile() const { return smem_; }

  // Keys [key, + kKeys) of the sequence.
  __device__ __forceinline__ void load(int key) const {
    using Layout = TileLayout<kKeys>;
    constexpr int kStep = 32 / Layout::kChunks;  // rows that the warp copies at once
    const ScoreBias& tensor = args_.p.mods.bias;
    const int lane = thread_again() % 32, chunk = lane % Layout::kChunks, first = lane / Layout::kChunks;
    const int keys = tile_.sequence.seqlen_k - key - chunk * kChunk;
    const int bytes = min(max(keys, 0), kChunk) * static_cast<int>(sizeof(T));
    const int left = keys > 0 ? tile_.rows - warp_.row - first : 0;
    const T* const bias = static_cast<const T*>(tensor.data) + tile_.bias_origin;
    const T* from = bias + key + chunk * kChunk;
    const int at = tile_.first + warp_.row + first;
    if (args_.packed_heads.size() == 1) {
      from += at * tensor.q_stride;
#pragma unroll
      for (int row = 0; row < kRows; row += kStep) {
        copy_async_part(smem_ + Layout::offset(row + first, chunk), row < left ? from : bias, row < left ? bytes : 0);
        from += kStep * tensor.q_stride;
      }
    } else {
#pragma unroll 1
      for (int row = 0; row < kRows; row += kStep) {
        const TileRows rows = rows_of(args_, tile_);
        const int64_t offset = rows.head_of(at + row) * tensor.head_stride + rows.query_of(at + row) * tensor.q_stride;
        copy_async_part(smem_ + Layout::offset(row + first, chunk), row < left ? from + offset : bias,
                        row < left ? bytes : 0);
      }
    }
  }

 private:
  const FwdGrid& args_;
  const FwdTile& tile_;
  const WarpPart<kPolicy>& warp_;
  uint32_t smem_;
};

}  // namespace xformers::cuda::sm80
