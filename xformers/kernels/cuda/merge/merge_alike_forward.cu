// out = sum_i W_i out_i of parts that lie alike: merge_alike.cuh.
#include "xformers/kernels/cuda/merge/merge_alike.cuh"

namespace xformers::cuda {
namespace {

// kBatch parts are read at once; two: there are no more.
template <class T, class O, int kBatch>
__global__ void __launch_bounds__(kAlikeThreads, kBatch == 2 ? 12 : 7)
    merge_forward_alike(const __grid_constant__ AlikeArgs args) {
  constexpr int kVector = kVectorOf<T>;
  constexpr bool kAll = kBatch == 2;
  const WarpRows warp(args);
  if (warp.first >= args.rows) return;
  const int num_parts = warp.num_parts;
  Packed<T, kVector> x[kBatch][kRows];
  if (warp.in_row < args.vectors) warp.load_parts(x, args, 0, warp.in_row);
  float* const weights = warp.memory(num_parts + 1);                               // [parts][rows]
  auto* const to = reinterpret_cast<uint32_t*>(weights + num_parts * warp.count);  // [rows]
  if (warp.lane < warp.count) to[warp.lane] = warp.own.in(args.out);
  const float lse = find_weights<kAll ? kBatch : 0>(args, warp, weights);
  if (args.lse_data && warp.has_own) static_cast<float*>(args.lse_data)[warp.own.in(args.lse)] = lse;
  const auto add = [&](float(&sum)[kVector], const Packed<T, kVector>& elements, int part, int u) {
    const float weight = weights[part * warp.count + warp.row(u)];
    if (weight == 0) return;  // its elements may be anything
    float numbers[kVector];
    unpack(elements, numbers);
#pragma unroll
    for (int d = 0; d < kVector; ++d) sum[d] += weight * numbers[d];
  };
  const auto write = [&](const float(&sum)[kVector], int u, uint32_t vector) {
    if (!warp.has(u, args)) return;
    static_cast<Packed<O, kVector>*>(args.out_data)[to[warp.row(u)] + vector] = pack<O>(sum);
  };
  for (uint32_t vector = warp.in_row; vector < args.vectors; vector += warp.lanes()) {
    if constexpr (kAll) {
      if (vector >= warp.lanes()) warp.load_parts(x, args, 0, vector);
#pragma unroll
      for (int u = 0; u < kRows; ++u) {
        float sum[kVector] = {};
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (i < num_parts) add(sum, x[i][u], i, u);
        }
        write(sum, u, vector);
      }
    } else {
      float sum[kRows][kVector] = {};
      for (int begin = 0; begin < num_parts; begin += kBatch) {
        if (begin > 0 || vector >= warp.lanes()) warp.load_parts(x, args, begin, vector);
#pragma unroll
        for (int u = 0; u < kRows; ++u) {
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            if (begin + i < num_parts) add(sum[u], x[i][u], begin + i, u);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < kRows; ++u) write(sum[u], u, vector);
    }
  }
}

template <class T, class O>
void launch_as(const AlikeArgs& args, cudaStream_t stream) {
  const auto kernel = args.num_parts <= 2 ? merge_forward_alike<T, O, 2> : merge_forward_alike<T, O, 4>;
  launch_alike(kernel, args, args.num_parts + 1, stream);
}

}  // namespace

void launch_alike_forward(const AlikeArgs& args, cudaStream_t stream) {
  with_float(args.dtype, [&]<class T>(T) {
    if (args.out_dtype == args.dtype) return launch_as<T, T>(args, stream);
    if constexpr (std::is_same_v<T, float>) {
      with_float(args.out_dtype, [&]<class O>(O) { launch_as<T, O>(args, stream); });
    }
  });
}

}  // namespace xformers::cuda
