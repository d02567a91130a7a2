// O += P V, and what is left to do at the end: the division by the sums, out, lse, partial results.
#pragma once

#include <type_traits>

#include "xformers/kernels/cuda/attention/sm80/fwd_load.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_softmax.cuh"

namespace xformers::cuda::sm80 {

// Keys [16 k, + 16) of the warp's part.
template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void to_probabilities(uint32_t (&p)[kPolicy.row_tiles][4],
                                                 const typename WarpPart<kPolicy>::Scores& s, int k) {
#pragma unroll
  for (int r = 0; r < kPolicy.row_tiles; ++r)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const at = &s[r][2 * k + i / 2][i % 2 * 2];
      p[r][i] = pack<T>(at[0], at[1]);
    }
}

// Keys [key, + 16) of the tile of V.
template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void accumulate(typename WarpPart<kPolicy>::Output& out,
                                           const uint32_t (&p)[kPolicy.row_tiles][4], uint32_t smem_v, int key,
                                           const WarpPart<kPolicy>& warp) {
  using Part = WarpPart<kPolicy>;
#pragma unroll
  for (int d = 0; d < Part::kDimTiles; d += 2) {
    uint32_t b[4];
    load_b_transposed<kPolicy.head_dim>(b, smem_v, key, warp.dim() / 16 + d / 2);
#pragma unroll
    for (int r = 0; r < Part::kRowTiles; ++r) {
      mma<T>(out[r][d], p[r], b[0], b[1]);
      mma<T>(out[r][d + 1], p[r], b[2], b[3]);
    }
  }
}

// All keys of the step. Warps that share rows hand each other their probabilities through shared memory, fragment by
// fragment as they lie in registers, while they work on their own.
template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void accumulate_all(typename WarpPart<kPolicy>::Output& out,
                                               const typename WarpPart<kPolicy>::Probabilities& p, uint32_t smem_v,
                                               uint32_t smem_shared, const WarpPart<kPolicy>& warp) {
  using Part = WarpPart<kPolicy>;
  constexpr int kSteps = Part::kKeyTiles / 2, kFragmentBytes = 32 * 16;
  const auto place = [&](int warp_index, int k, int r) {
    return smem_shared + ((warp_index * kSteps + k) * Part::kRowTiles + r) * kFragmentBytes + threadIdx.x % 32 * 16;
  };
  if constexpr (kPolicy.sharers > 1) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
#pragma unroll
      for (int r = 0; r < Part::kRowTiles; ++r) {
        store_shared_16(place(warp.warp, k, r), {p[k][r][0], p[k][r][1], p[k][r][2], p[k][r][3]});
      }
  }
#pragma unroll
  for (int k = 0; k < kSteps; ++k) accumulate<T, kPolicy>(out, p[k], smem_v, warp.key() + k * 16, warp);
  if constexpr (kPolicy.sharers > 1) {
    static_assert(kPolicy.sharers == 2);
    sync_sharers<kPolicy>(warp);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t other[Part::kRowTiles][4];
#pragma unroll
      for (int r = 0; r < Part::kRowTiles; ++r) {
        const uint4 got = load_shared_16(place(warp.warp ^ 1, k, r));
        other[r][0] = got.x, other[r][1] = got.y, other[r][2] = got.z, other[r][3] = got.w;
      }
      accumulate<T, kPolicy>(out, other, smem_v, (1 - warp.part) * kPolicy.warp_keys() + k * 16, warp);
    }
  }
}

template <class T, FwdPolicy kPolicy>
class OutputWriter {
  using Part = WarpPart<kPolicy>;
  using Output = typename Part::Output;

 public:
  __device__ __forceinline__ OutputWriter(const FwdGrid& args, const FwdTile& tile, const Part& warp)
      : args_(args), p_(args.p), tile_(tile), warp_(warp), dim_v_(static_cast<int>(args.p.shape.head_dim_v)) {}

  // `smem`: a tile like that of Q, which nobody needs any more.
  __device__ __forceinline__ void write(const Output& out, const OnlineSoftmax<kPolicy>& softmax, float scale,
                                        uint32_t smem) const {
    const bool pairs = args_.aligned_out && dim_v_ % 2 == 0;
#pragma unroll
    for (int r = 0; r < Part::kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = tile_.first_row + warp_.lane_row(r, half);
        if (!tile_.inside(row)) continue;
        const float sum = softmax.sum(r, half);
        const float factor = sum > 0 ? static_cast<float>(args_.kept) / sum : 0.0f;
        const float lse = softmax.lse(r, half, scale);
        const bool writes_lse = threadIdx.x % 4 == 0 && warp_.part == 0;
        const int64_t query = tile_.sequence.q_begin + query_of(args_, row), batch = tile_.sequence.batch;
        const int head = head_of(args_, tile_, row);
        if (kPolicy.features == Features::kGeneral && args_.out_partial) {
          const int64_t at =
              blockIdx.y * args_.total_rows +
              ((batch * p_.shape.num_groups + tile_.group) * p_.shape.heads_per_group + head) * p_.shape.seqlen_q +
              query;
          if (writes_lse) args_.lse_partial[at] = lse;
          write_row(args_.out_partial + at * dim_v_, out, r, half, factor, dim_v_ % 2 == 0);
          continue;
        }
        if (writes_lse && p_.lse.data) {
          static_cast<float*>(p_.lse.data)[batch * p_.lse.batch_stride + tile_.group * p_.lse.group_stride +
                                           head * p_.lse.head_stride + query] = lse;
        }
        if (args_.chunked_out) {
          stage_row(smem, out, r, half, factor);
          continue;
        }
        const int64_t at = batch * p_.out.batch_stride + query * p_.out.seq_stride + tile_.group * p_.out.group_stride +
                           head * p_.out.head_stride;
        if (p_.wide_out) {
          write_row(static_cast<float*>(p_.out.data) + at, out, r, half, factor, pairs);
        } else {
          write_row(static_cast<T*>(p_.out.data) + at, out, r, half, factor, pairs);
        }
      }
    }
    if (args_.chunked_out && (kPolicy.features != Features::kGeneral || !args_.out_partial)) write_staged_rows(smem);
  }

 private:
  // Results as rows in shared memory, from where they leave in units of 16 bytes.
  __device__ __forceinline__ void stage_row(uint32_t smem, const Output& out, int r, int half, float factor) const {
#pragma unroll
    for (int d = 0; d < Part::kDimTiles; ++d) {
      store_shared_4(smem + TileLayout<kPolicy.head_dim>::offset(warp_.lane_row(r, half), warp_.dim() / kChunk + d) +
                         threadIdx.x % 4 * 4,
                     pack<T>(out[r][d][half * 2] * factor, out[r][d][half * 2 + 1] * factor));
    }
  }
  __device__ __forceinline__ void write_staged_rows(uint32_t smem) const {
    constexpr int kChunks = Part::kDimTiles;  // per row of this warp
    __syncwarp();
    T* const out = static_cast<T*>(p_.out.data) + tile_.sequence.batch * p_.out.batch_stride +
                   tile_.group * p_.out.group_stride + tile_.sequence.q_begin * p_.out.seq_stride;
#pragma unroll 4
    for (int index = threadIdx.x % 32; index < kPolicy.warp_rows() * kChunks; index += 32) {
      const int local = warp_.row + index / kChunks, chunk = warp_.dim() / kChunk + index % kChunks;
      const int row = tile_.first_row + local;
      if (!tile_.inside(row) || chunk * kChunk >= dim_v_) continue;
      T* const to = out + query_of(args_, row) * p_.out.seq_stride + head_of(args_, tile_, row) * p_.out.head_stride +
                    chunk * kChunk;
      *reinterpret_cast<uint4*>(to) = load_shared_16(smem + TileLayout<kPolicy.head_dim>::offset(local, chunk));
    }
  }

  // `pairs`: in units of two elements.
  template <class Element>
  __device__ __forceinline__ void write_row(Element* to, const Output& out, int r, int half, float factor,
                                            bool pairs) const {
    const int first = warp_.dim() + threadIdx.x % 4 * 2;
    to += first;
#pragma unroll
    for (int d = 0; d < Part::kDimTiles; ++d, to += 8) {
      const int dims = dim_v_ - first - d * 8;
      const float x = out[r][d][half * 2] * factor, y = out[r][d][half * 2 + 1] * factor;
      if (!pairs) {
        if (dims > 0) to[0] = to_element<Element>(x);
        if (dims > 1) to[1] = to_element<Element>(y);
      } else if (dims > 0) {
        if constexpr (std::is_same_v<Element, float>) {
          *reinterpret_cast<float2*>(to) = {x, y};
        } else {
          *reinterpret_cast<uint32_t*>(to) = pack<T>(x, y);
        }
      }
    }
  }

  const FwdGrid& args_;
  const AttentionFwdParams& p_;
  const FwdTile& tile_;
  const Part& warp_;
  int dim_v_;
};

}  // namespace xformers::cuda::sm80
