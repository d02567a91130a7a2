// O += P V, and what is left to do at the end: the division by the sums, out, lse, partial results.
#pragma once

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/attention/epilogue.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_load.cuh"
#include "xformers/kernels/cuda/attention/sm80/fwd_softmax.cuh"
#include "xformers/kernels/cuda/attention/sm80/operand.cuh"

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

// A warp's dims of the tile of V.
template <FwdPolicy kPolicy>
struct ValueOperand {
  // They begin with a group of permuted chunks.
  static constexpr bool kGrouped = kPolicy.sharers == 1 || kPolicy.warp_dims() % 64 == 0;
  TileOperand<kPolicy.head_dim, Lanes::kRowsFirst> rows;
  int pair;  // of chunks, the first one

  __device__ __forceinline__ ValueOperand(uint32_t smem_v, const WarpPart<kPolicy>& warp)
      : rows(smem_v + (kGrouped ? 2 * warp.dim() : 0), 0), pair(kGrouped ? 0 : warp.dim() / 16) {}
};

// Keys [key, + 16) of the tile of V.
template <class T, FwdPolicy kPolicy>
__device__ __forceinline__ void accumulate(typename WarpPart<kPolicy>::Output& out,
                                           const uint32_t (&p)[kPolicy.row_tiles][4], const ValueOperand<kPolicy>& v,
                                           int key) {
  using Part = WarpPart<kPolicy>;
#pragma unroll
  for (int d = 0; d < Part::kDimTiles; d += 2) {
    uint32_t b[4];
    v.rows.load_transposed(b, key, v.pair + d / 2);
#pragma unroll
    for (int r = 0; r < Part::kRowTiles; ++r) {
      mma<T>(out[r][d], p[r], b[0], b[1]);
      mma<T>(out[r][d + 1], p[r], b[2], b[3]);
    }
  }
}

// All keys of the step. Warps that share rows hand each other their probabilities through shared memory, fragment by
// fragment as they lie in registers, while they work on their own. shown(square): of 16 keys of the step.
template <class T, FwdPolicy kPolicy, class Meanwhile, class Shown>
__device__ __forceinline__ void accumulate_all(typename WarpPart<kPolicy>::Output& out,
                                               const typename WarpPart<kPolicy>::Probabilities& p,
                                               const ValueOperand<kPolicy>& v, uint32_t smem_shared,
                                               const WarpPart<kPolicy>& warp, const Meanwhile& meanwhile,
                                               const Shown& shown) {
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
  for (int k = 0; k < kSteps; ++k) {
    if (shown(warp.part * kSteps + k)) accumulate<T, kPolicy>(out, p[k], v, warp.key() + k * 16);
    if (k == 0) meanwhile();
  }
  if constexpr (kPolicy.sharers > 1) {
    static_assert(kPolicy.sharers == 2);
    sync_sharers<kPolicy>(warp);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      if (!shown((1 - warp.part) * kSteps + k)) continue;
      uint32_t other[Part::kRowTiles][4];
#pragma unroll
      for (int r = 0; r < Part::kRowTiles; ++r) {
        const uint4 got = load_shared_16(place(warp.warp ^ 1, k, r));
        other[r][0] = got.x, other[r][1] = got.y, other[r][2] = got.z, other[r][3] = got.w;
      }
      accumulate<T, kPolicy>(out, other, v, (1 - warp.part) * kPolicy.warp_keys() + k * 16);
    }
  }
}

template <class T, FwdPolicy kPolicy>
class OutputWriter {
  using Part = WarpPart<kPolicy>;
  using Output = typename Part::Output;
  using Values = ValueOperand<kPolicy>;

 public:
  __device__ __forceinline__ OutputWriter(const FwdGrid& args, const FwdTile& tile, const Part& warp)
      : args_(args), p_(args.p), tile_(tile), warp_(warp), dim_v_(static_cast<int>(args.p.shape.head_dim_v)) {}

  // `smem`: a tile like that of Q, which nobody needs any more.
  __device__ __forceinline__ void write(const Output& out, const SoftmaxRows<Part::kRowTiles>& softmax,
                                        const ScoreUnit& unit, uint32_t smem) const {
    RowValues<Part::kRowTiles> factor;
    for_each_row<Part::kRowTiles>([&](int r, int half) {
      const float sum = softmax.row_sum[r][half];
      factor[r][half] = sum == 0 ? 0.0f : static_cast<float>(args_.kept) / sum;
      const TileRows rows = rows_of(args_, tile_);
      const int row = tile_.first + warp_.lane_row(r, half);
      const bool stores = threadIdx.x % 4 == 0 && warp_.part == 0;
      if (!(stores || p_.mods.sinks.data) || !rows.inside(row)) return;
      factor[r][half] *= finish_row(args_, static_cast<int>(blockIdx.y), tile_, rows.place_of(row),
                                    {natural_max(softmax.row_max[r][half], unit), sum}, stores);
    });
    if (args_.out_partial && tile_.blocks.empty()) return;  // its statistics say that there is nothing to read
    const RowPlace first{tile_.sequence.q_begin, tile_.head};
    if (!args_.out_partial && !p_.wide_out) {
      write_rows(Rows<T>{out_row<T>(p_.out, tile_, first), p_.out.seq_stride, p_.out.head_stride}, out, factor, smem,
                 args_.chunked_out);
      return;
    }
    Rows<float> rows{out_row<float>(p_.out, tile_, first), p_.out.seq_stride, p_.out.head_stride};
    if (args_.out_partial) {
      const int64_t row = blockIdx.y * args_.total_rows + partial_row(p_.shape, tile_, first);
      rows = {args_.out_partial + row * dim_v_, dim_v_, p_.shape.seqlen_q * dim_v_};
    }
    write_rows(rows, out, factor, smem, args_.out_partial ? dim_v_ % 4 == 0 : args_.chunked_out);
  }

 private:
  // Where results go: of query 0 and head 0 of the tile's sequence and group (or of its head).
  template <class Element>
  struct Rows {
    Element* first;
    int64_t query_stride, head_stride;
  };

  // Results pass through the warp's own rows and dims of `smem`, fp32 in two halves, so that they leave in units of 16
  // bytes (`chunked`).
  template <class Element>
  __device__ __forceinline__ void write_rows(const Rows<Element>& rows, const Output& out,
                                             const float (&factor)[Part::kRowTiles][2], uint32_t smem,
                                             bool chunked) const {
    constexpr bool kWide = sizeof(Element) == 4;
    constexpr int kPasses = kWide ? 2 : 1, kTiles = Part::kDimTiles / kPasses;
    // A lane holds two of every eight dims: 4 bytes of a chunk, or 8 of two.
    const int i = threadIdx.x % 4;
    const TileChunks<kPolicy.head_dim, Values::kGrouped> place(smem, warp_.lane_row(0, 0),
                                                               warp_.dim() / kChunk + (kWide ? i / 2 : 0));
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      __syncwarp();
#pragma unroll
      for (int d = 0; d < kTiles; ++d)
#pragma unroll
        for (int r = 0; r < Part::kRowTiles; ++r)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float* const at = &out[r][pass * kTiles + d][half * 2];
            const float x = at[0] * factor[r][half], y = at[1] * factor[r][half];
            const uint32_t to =
                kWide ? place.at(r * 16 + half * 8, 2 * d) + i % 2 * 8 : place.at(r * 16 + half * 8, d) + i * 4;
            if constexpr (kWide) {
              store_shared_8(to, {__float_as_uint(x), __float_as_uint(y)});
            } else {
              store_shared_4(to, pack<T>(x, y));
            }
          }
      __syncwarp();
      const int first = warp_.dim() + pass * kTiles * 8;
      if (chunked) {
        copy_staged<4>(rows, smem, first,
                       [](Element* to, const uint4& chunk, int) { *reinterpret_cast<uint4*>(to) = chunk; });
      } else {
        copy_staged<1>(rows, smem, first, [](Element* to, const uint4& chunk, int dims) {
          const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
          for (int i = 0; i < 16 / static_cast<int>(sizeof(Element)); ++i) {
            if (i >= dims) continue;
            if constexpr (sizeof(Element) == 4) {
              to[i] = __uint_as_float(words[i]);
            } else {
              reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
            }
          }
        });
      }
    }
  }

  // write(where, 16 bytes, dims from there on) for all that the warp has staged; `first`: dim.
  template <int kUnroll, class Element, class Write>
  __device__ __forceinline__ void copy_staged(const Rows<Element>& rows, uint32_t smem, int first,
                                              const Write& write) const {
    constexpr int kChunks = Part::kDimTiles, kDims = 16 / sizeof(Element);  // per row; per chunk
    constexpr int kAcross = kChunks & -kChunks;  // neighbouring lanes in a row: a power of two
    const int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int chunk = lane % kAcross; chunk < kChunks; chunk += kAcross) {
      const int dim = first + chunk * kDims;
      if (dim >= dim_v_) break;
#pragma unroll kUnroll
      for (int row = warp_.row + lane / kAcross; row < warp_.row + kPolicy.warp_rows(); row += 32 / kAcross) {
        if (row >= tile_.rows) break;
        const int at = tile_.first + row, query = rows_of(args_, tile_).query_of(at);
        Element* to = rows.first + query * rows.query_stride + dim;
        const int packed_heads = static_cast<int>(args_.packed_heads.size());
        if (packed_heads > 1) to += (at - query * packed_heads) * rows.head_stride;
        write(to, load_shared_16(smem + TileLayout<kPolicy.head_dim>::offset(row, warp_.dim() / kChunk + chunk)),
              dim_v_ - dim);
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
