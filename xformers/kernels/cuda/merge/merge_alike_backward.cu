// Gradients of parts that lie alike (merge_alike.cuh): dout_i = W_i dout as soon as weights are there, <out_i, dout>
// for dlse_i beside it.
#include "xformers/kernels/cuda/merge/merge_alike.cuh"

namespace xformers::cuda {
namespace {

// Gradients of the lses of one row, and of which lane: dots are <out_i, dout>, [num_parts] every `stride`.
__device__ __forceinline__ void write_lse_gradients(const AlikeArgs& args, const MergeRow& row, const float* weights,
                                                    const float* dots, int stride) {
  const int num_parts = static_cast<int>(args.num_parts);
  float mean = 0;
  for (int i = 0; i < num_parts; ++i) mean += weights[i * stride] * dots[i * stride];
  const float dlse = args.lse_data ? static_cast<const float*>(args.lse_data)[row.in(args.lse)] : 0;
  const uint32_t to = row.in(args.grad_lse);
  for (int i = 0; i < num_parts; ++i) {
    const float weight = weights[i * stride];
    static_cast<float*>(args.grads[i].lse)[to] = weight == 0 ? 0 : weight * (dlse + dots[i * stride] - mean);
  }
}

// kBatch parts are read at once; two: there are no more.
template <class T, int kBatch>
__global__ void __launch_bounds__(kAlikeThreads, kBatch == 2 ? 8 : 5)
    merge_backward_alike(const __grid_constant__ AlikeArgs args) {
  constexpr int kVector = kVectorOf<T>;
  constexpr bool kAll = kBatch == 2;
  using Vector = Packed<T, kVector>;
  const WarpRows warp(args);
  if (warp.first >= args.rows) return;
  const int num_parts = warp.num_parts;
  uint32_t from_dout[kRows];
  warp.tell(from_dout, warp.own.in(args.out));
  Vector x[kBatch][kRows], dout[kRows];
  if (warp.in_row < args.vectors) {
    load_rows(dout, args.out_data, from_dout, warp.in_row);
    warp.load_parts(x, args, 0, warp.in_row);
  }
  float* const weights = warp.memory(2 * num_parts + 1);                        // [parts][rows]
  float* const dots = weights + num_parts * warp.count;                         // likewise
  auto* const to = reinterpret_cast<uint32_t*>(dots + num_parts * warp.count);  // [rows]
  if (warp.lane < warp.count) to[warp.lane] = warp.own.in(args.grad_out);
  find_weights<kAll ? kBatch : 0>(args, warp, weights);
  for (int begin = 0; begin < num_parts; begin += kBatch) {
    float dot[kBatch * kRows] = {};
    for (uint32_t vector = warp.in_row; vector < args.vectors; vector += warp.lanes()) {
      const bool again = vector >= warp.lanes() || (begin > 0 && args.vectors > warp.lanes());
      if (again) load_rows(dout, args.out_data, from_dout, vector);
      if (again || begin > 0) warp.load_parts(x, args, begin, vector);
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        float gradient[kVector];
        unpack(dout[u], gradient);
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (begin + i >= num_parts) continue;
          const float weight = weights[(begin + i) * warp.count + warp.row(u)];
          Vector result = {};
          if (weight != 0) {  // else elements may be anything
            float weighted[kVector], numbers[kVector];
            unpack(x[i][u], numbers);
#pragma unroll
            for (int d = 0; d < kVector; ++d) {
              weighted[d] = weight * gradient[d];
              dot[i * kRows + u] += numbers[d] * gradient[d];
            }
            result = pack<T>(weighted);
          }
          if (warp.has(u, args)) static_cast<Vector*>(args.grads[begin + i].out)[to[warp.row(u)] + vector] = result;
        }
      }
    }
    warp.reduce(dot);
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        if (warp.in_row == 0 && begin + i < num_parts)
          dots[(begin + i) * warp.count + warp.row(u)] = dot[i * kRows + u];
      }
    }
    if (kAll) break;
  }
  __syncwarp();
  if (warp.has_own) write_lse_gradients(args, warp.own, weights + warp.lane, dots + warp.lane, warp.count);
}

}  // namespace

void launch_alike_backward(const AlikeArgs& args, cudaStream_t stream) {
  with_float(args.dtype, [&]<class T>(T) {
    const auto kernel = args.num_parts <= 2 ? merge_backward_alike<T, 2> : merge_backward_alike<T, 4>;
    launch_alike(kernel, args, 2 * args.num_parts + 1, stream);
  });
}

}  // namespace xformers::cuda
