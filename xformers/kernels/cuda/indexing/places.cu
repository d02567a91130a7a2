#include <algorithm>

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/indexing/places.cuh"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256;

// Which of the places of a row comes first in its list is left to chance.
__global__ void __launch_bounds__(kThreads) link_places(const __grid_constant__ PlaceIndex places) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < places.count; i += gridDim.x * int64_t{kThreads}) {
    const int64_t row = places.index[i];
    if (!in_range(row, places.rows)) continue;
    auto* const head = reinterpret_cast<unsigned long long*>(places.head + row);
    places.next[i] = static_cast<int64_t>(atomicExch(head, static_cast<unsigned long long>(i)));
  }
}

}  // namespace

PlaceIndex make_place_lists(const int64_t* index, int64_t count, int64_t rows, void* memory, const Stream& where) {
  PlaceIndex places{.index = index, .count = count, .rows = rows};
  if (is_searched(count)) return places;
  places.head = static_cast<int64_t*>(memory);
  places.next = places.head + rows;
  const auto stream = static_cast<cudaStream_t>(where.stream);
  XFORMERS_CUDA_CHECK(cudaMemsetAsync(places.head, 0xff, static_cast<size_t>(rows) * 8, stream));
  launch<0>(link_places, std::min<int64_t>((count + kThreads - 1) / kThreads, 4096), 1, kThreads, stream, places);
  return places;
}

}  // namespace xformers::cuda
