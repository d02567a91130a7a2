// Sizes of the decode kernel: chosen on the host, handed to the kernel as one template argument.
#pragma once

namespace xformers::cuda::decode {

inline constexpr int kRows = 16;  // (query, head) pairs of one tile

struct DecodePolicy {
  int head_dim;  // both head dims are padded to it
  int warps;
  int keys;    // of a stage
  int stages;  // of each warp's own ring

  constexpr int threads() const { return 32 * warps; }
  constexpr int step() const { return warps * keys; }                    // keys that a block takes at once
  constexpr int stage_bytes() const { return 2 * 2 * keys * head_dim; }  // K and V
  constexpr int ring_bytes() const { return warps * stages * stage_bytes(); }
  constexpr int sum_stride() const { return head_dim + 8; }  // so that neighbouring rows fall on different banks
  constexpr int merge_bytes() const {
    return warps * kRows * (sum_stride() + 2) * 4;
  }  // the warps' results, over the rings
  constexpr bool shares_q() const { return head_dim > 128; }  // Q in shared memory: registers don't hold it
  constexpr int q_bytes() const { return shares_q() ? 2 * kRows * head_dim : 0; }
  constexpr int smem_bytes() const { return (ring_bytes() > merge_bytes() ? ring_bytes() : merge_bytes()) + q_bytes(); }
};
inline constexpr int kBlocksPerMultiprocessor = 2;

// 96 KiB on their way per block: memory has about a microsecond to answer, in which a multiprocessor of an H200 could
// take 36 KiB.
constexpr DecodePolicy decode_policy(int head_dim) {
  if (head_dim <= 64) return {head_dim, 4, 32, 3};
  if (head_dim <= 128) return {head_dim, 4, 16, 3};
  return {head_dim, 2, 16, 3};
}

}  // namespace xformers::cuda::decode
