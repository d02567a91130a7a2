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
  extern __shared__ float memory[];
  const WarpRows warp(args);
  if (warp.first >= args.rows) return;
  const int num_parts = static_cast<int>(args.num_parts);
  const uint32_t mine = min(warp.first + warp.lane, args.rows - 1);
  const AlikePlace place(args, mine);
  uint32_t from[kRows];
  warp.tell(from, place.in(args.part_out));

  Elements<T, kVector> x[kBatch][kRows];
  const auto load = [&](int begin, uint32_t vector) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (begin + i < num_parts) load_rows(x[i], args.parts[begin + i].out, from, vector);
    }
  };
  if (warp.in_row < args.vectors) load(0, warp.in_row);
  float* const weights = memory + threadIdx.x / 32 * warp.count * (num_parts + 1);  // [parts][rows]
  auto* const to = reinterpret_cast<uint32_t*>(weights + num_parts * warp.count);   // [rows]
  if (warp.lane < warp.count) to[warp.lane] = place.in(args.out);
  const float lse = find_weights<kAll ? kBatch : 0>(args, warp, place, weights);
  if (args.lse_data && warp.lane < warp.count && mine == warp.first + warp.lane) {
    static_cast<float*>(args.lse_data)[place.in(args.lse)] = lse;
  }
  const auto add = [&](float(&sum)[kVector], const Elements<T, kVector>& elements, int part, int u) {
    const float weight = weights[part * warp.count + warp.row(u)];
    if (weight == 0) return;  // its elements may be anything
#pragma unroll
    for (int d = 0; d < kVector; ++d) sum[d] += weight * elements.template get<float>(d);
  };
  const auto write = [&](const float(&sum)[kVector], int u, uint32_t vector) {
    if (!warp.has(u, args)) return;
    Elements<O, kVector> result;
    result.set(sum);
    static_cast<Elements<O, kVector>*>(args.out_data)[to[warp.row(u)] + vector] = result;
  };
  for (uint32_t vector = warp.in_row; vector < args.vectors; vector += warp.lanes()) {
    if constexpr (kAll) {
      if (vector >= warp.lanes()) load(0, vector);
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
        if (begin > 0 || vector >= warp.lanes()) load(begin, vector);
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
  if (args.num_parts <= 2) {
    launch_alike(merge_forward_alike<T, O, 2>, args, args.num_parts + 1, stream);
  } else {
    launch_alike(merge_forward_alike<T, O, 4>, args, args.num_parts + 1, stream);
  }
}

}  // namespace

void launch_alike_forward(const AlikeArgs& args, cudaStream_t stream) {
  with_float(args.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.out_dtype == args.dtype) return launch_as<T, T>(args, stream);
    if constexpr (std::is_same_v<T, float>) {
      with_float(args.out_dtype, [&](auto out_type) { launch_as<T, decltype(out_type)>(args, stream); });
    }
  });
}

}  // namespace xformers::cuda
