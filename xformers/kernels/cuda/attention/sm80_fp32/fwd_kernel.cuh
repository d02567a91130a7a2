// Forward in fp32 on tensor cores (three products of halves, mma_half2.cuh), one block per tile of query rows:
//
//   load Q and split it
//   for blocks of keys:
//     split K;  load V | S = Q K^T;  split V;  load the next K | bias, mask, online softmax, dropout;  O += P V
//   write out and lse
//
// Each warp owns 16 * row_tiles rows and all keys; a lane holds rows lane / 4 and + 8 of each row tile. Shared memory:
// Q, K, V, each lane's running maxima, and the ratios of rows (halves.cuh), which nobody reads while numbers are of
// usual size.
#pragma once

#include "xformers/kernels/cuda/attention/sm80_fp32/fwd_rows.cuh"

namespace xformers::cuda::sm80_fp32 {

template <FwdPolicy kPolicy>
class Forward : ForwardRows<kPolicy> {
  using Rows = ForwardRows<kPolicy>;
  using Rows::args_, Rows::p_, Rows::place_, Rows::tile_, Rows::acc_o_;
  using Rows::kDim, Rows::kKeys, Rows::kRowTiles, Rows::kKeyTiles, Rows::kScored;
  using typename Rows::Scores;
  static constexpr int kThreads = kPolicy.threads(), kRows = kPolicy.block_m();
  using QTile = HalvesTile<kRows, kDim, kThreads>;
  using KeyTile = HalvesTile<kKeys, kDim, kThreads>;

  uint32_t smem_q_, smem_k_, smem_v_;
  float *ratios_q_, *ratios_k_, *ratios_v_;

 public:
  __device__ __forceinline__ Forward(const FwdArgs& args, FwdPlace& place, unsigned char* smem,
                                     typename Rows::Blocks& blocks)
      : Rows(args, place, reinterpret_cast<float*>(smem + kPolicy.rows_offset()), blocks) {
    smem_q_ = shared_address(smem);
    smem_k_ = smem_q_ + 4 * kDim * kRows;
    smem_v_ = smem_k_ + 4 * kDim * kKeys;
    ratios_q_ = reinterpret_cast<float*>(smem + kPolicy.ratios_offset());
    ratios_k_ = ratios_q_ + kRows;
    ratios_v_ = ratios_k_ + kKeys;
  }

  __device__ __forceinline__ void run() {
    int first_key = place_.keys.begin / kKeys * kKeys;
    if (this->hides()) first_key = this->key_of_turn(0);
    if (!place_.keys.empty() && (!this->hides() || first_key < place_.keys.end)) {
      KeyTile tile_k, tile_v;
      load_q();
      copy_async_commit();
      load_keys(smem_k_, place_.k, p_.k, first_key, p_.shape.head_dim);
      copy_async_commit();
      copy_async_wait<1>();
      if (QTile().split(smem_q_, ratios_q_)) place_.unusual_q = true;
#pragma unroll 1
      for (int key = first_key, next; key < place_.keys.end; key = next) {
        copy_async_wait<0>();
        const bool unusual_k =
            __syncthreads_or(tile_k.split(smem_k_, ratios_k_));  // K is there; everybody is done with V
        next = key + kKeys;
        if (this->hides()) next = this->next_turn();
        load_keys(smem_v_, place_.v, p_.v, key, p_.shape.head_dim_v);
        copy_async_commit();
        Scores scores;
        multiply_scores(scores);
        if (unusual_k || place_.unusual_q) this->scale_columns(scores, ratios_k_), this->scale_rows(scores, ratios_q_);
        copy_async_wait<0>();
        const bool unusual_v =
            __syncthreads_or(tile_v.split(smem_v_, ratios_v_));  // V is there; everybody is done with K
        if (next < place_.keys.end) {
          load_keys(smem_k_, place_.k, p_.k, next, p_.shape.head_dim);
          copy_async_commit();
        }
        if constexpr (kScored) this->modify_scores(scores, key);
        if (key < place_.full.begin || key + kKeys > place_.full.end) this->mask(scores, key);
        if (this->hides()) this->mask_blocks(scores);
        this->softmax(scores);
        if constexpr (kScored) {
          if (p_.dropout.p > 0) this->drop(scores, key);
        }
        RowValues<kRowTiles> units;
        this->suit_to_values(scores, units, unusual_v ? ratios_v_ : nullptr);
        accumulate(scores, units);
      }
    }
    this->finish();
  }

 private:
  __device__ __forceinline__ void load_q() {
    const float* q = static_cast<const float*>(p_.q.data) + tile_.sequence.batch * p_.q.batch_stride +
                     tile_.group * p_.q.group_stride;
    load_tile<kRows, kDim, kThreads>(smem_q_, tile_.rows, static_cast<int>(p_.shape.head_dim), args_.aligned_q, q,
                                     [&](int row) {
                                       const int at = tile_.first + row;
                                       const RowPlace place = Rows::rows().place_of(at);
                                       return q + place.query * p_.q.seq_stride + place.head * p_.q.head_stride;
                                     });
  }
  // `keys` begins with the sequence.
  __device__ __forceinline__ void load_keys(uint32_t to, const float* keys, const HeadsTensor& tensor, int first_key,
                                            int64_t dim) {
    const float* part = thread_part<kDim, kThreads>(keys + first_key * tensor.seq_stride, tensor.seq_stride);
    load_rows<kKeys, kDim, kThreads>(to, part, tensor.seq_stride, tile_.sequence.seqlen_k - first_key,
                                     static_cast<int>(dim), args_.aligned_kv);
  }

  __device__ __forceinline__ void multiply_scores(Scores& scores) {
    const int thread = threadIdx.x, lane = thread % 32;
    uint32_t q = lane_a<kDim>(smem_q_, lane) + thread / 32 * 16 * kRowTiles * TileLayout<kDim>::kRowBytes;
    uint32_t k = lane_b<kDim>(smem_k_, lane);
    Scores rest = {};  // sums of small products, apart: the tensor core would cut them to the size of the large ones
    clear<kRowTiles, kKeyTiles>(scores);
#pragma unroll
    for (int dim = 0; dim < kDim; dim += 64, q += 128, k += 128) {
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        Halves a[kRowTiles];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) a[r] = load_halves<kDim>(q, r * 16, d);
#pragma unroll
        for (int n = 0; n < kKeyTiles; n += 2) {
          const Halves b = load_halves<kDim>(k, n * 8, d);
#pragma unroll
          for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) mma_halves(rest[r][n + j], a[r].small, b.big[2 * j], b.big[2 * j + 1]);
#pragma unroll
          for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) mma_halves(scores[r][n + j], a[r].big, b.big[2 * j], b.big[2 * j + 1]);
#pragma unroll
          for (int j = 0; j < 2; ++j)
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r)
              mma_halves(rest[r][n + j], a[r].big, b.small[2 * j], b.small[2 * j + 1]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[r][n][i] += rest[r][n][i];
  }

  // Sums of 32 keys, small products first: the tensor core cuts off what is small next to a sum, and longer sums would
  // drift towards zero.
  __device__ __forceinline__ void accumulate(const Scores& probs, const RowValues<kRowTiles>& units) {
    constexpr int kSteps = 2, kTiles = 2;  // of 16 keys; of 8 dims at a time
    const uint32_t v = lane_a<kDim>(smem_v_);
#pragma unroll
    for (int first = 0; first < kKeyTiles; first += 2 * kSteps) {
      Halves a[kRowTiles][kSteps];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int k = 0; k < kSteps; ++k) a[r][k] = to_halves(probs[r][first + 2 * k], probs[r][first + 2 * k + 1]);
#pragma unroll
      for (int d = 0; d < kDim / 8; d += kTiles) {
        Halves b[kSteps][kTiles / 2];
        float sums[kRowTiles][kTiles][4] = {};
#pragma unroll
        for (int k = 0; k < kSteps; ++k)
#pragma unroll
          for (int j = 0; j < kTiles / 2; ++j) {
            b[k][j] = load_halves_transposed<kDim>(v, (first + 2 * k) * 8, d / 2 + j);
          }
        const auto add = [&](int k, auto left, auto right) {
#pragma unroll
          for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) {
              const auto& columns = right(b[k][j / 2]);
              mma_halves(sums[r][j], left(a[r][k]), columns[j % 2 * 2], columns[j % 2 * 2 + 1]);
            }
        };
        const auto big = [](const auto& x) -> const auto& { return x.big; };
        const auto small = [](const auto& x) -> const auto& { return x.small; };
#pragma unroll
        for (int k = 0; k < kSteps; ++k) add(k, small, big), add(k, big, small);
#pragma unroll
        for (int k = 0; k < kSteps; ++k) add(k, big, big);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
          for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) acc_o_[r][d + j][i] = fmaf(sums[r][j][i], units[r][i / 2], acc_o_[r][d + j][i]);
      }
    }
  }
};

// (nvcc's host stub of a kernel can't be a template over a struct, so the policy is made here.)
template <int kHeadDim, bool kScored>
__global__ void __launch_bounds__(fwd_policy(kHeadDim, kScored).threads(), fwd_policy(kHeadDim, kScored).blocks_per_sm)
    attention_fwd_sm80_fp32(const __grid_constant__ FwdArgs args) {
  constexpr FwdPolicy kPolicy = fwd_policy(kHeadDim, kScored);
  extern __shared__ __align__(128) unsigned char smem[];
  __shared__ FwdPlace place;
  __shared__ typename ForwardRows<kPolicy>::Blocks blocks;
  const HeadTile tile = fwd_tile<kPolicy.block_m()>(args);
  if (tile.rows <= 0) return;
  if (threadIdx.x == 0) place = fwd_place(args, tile);
  __syncthreads();
  if constexpr (kScored) {
    if (args.p.blocks.present()) {
      blocks.begin(args.p.blocks, {place.tile, args.packed_heads}, blocks_with(place.keys, kPolicy.block_n));
      __syncthreads();
    }
  }
  Forward<kPolicy> forward(args, place, smem, blocks);
  forward.run();
}

}  // namespace xformers::cuda::sm80_fp32
