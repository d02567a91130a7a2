// The backward of index_select_cat: every row of a source has one owner, which adds up the gradients that belong to it
// in the order of their places.
#include <algorithm>

#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/indexing/indexing_cuda.h"
#include "xformers/kernels/cuda/indexing/pieces.cuh"
#include "xformers/kernels/cuda/indexing/places.cuh"

namespace xformers::cuda {
namespace {

constexpr int kItems = 8;

struct ScatterArgs {
  RowSelection s;
  PlaceIndex places;
  Pieces<kItems> pieces;
};

template <class T, int kVec>
__global__ void __launch_bounds__(kPieceThreads, kPieceBlocks) scatter_rows(const __grid_constant__ ScatterArgs args) {
  using C = Compute<T>;
  __shared__ PlacesShared shared;
  const RowSelection& s = args.s;
  const auto head_of = [&](int64_t row) {
    return args.places.head && row < s.source_rows ? args.places.head[row] : int64_t{-1};
  };
  RowPlaces places{-1, false};
  int64_t next_head = -2;  // of the row behind this one
  args.pieces.for_each([&](int64_t row, int64_t piece, bool other_row) {
    if (other_row) {
      places = places_of(args.places, shared, row, next_head == -2 ? head_of(row) : next_head);
      next_head = head_of(row + 1);
    }
    const int64_t begin = (piece * kItems * blockDim.x + threadIdx.x) * kVec, step = int64_t{blockDim.x} * kVec;
    T* const to = static_cast<T*>(s.source) + row * s.row_stride;
    if (!places.several) {
      Packed<T, kVec> x[kItems] = {};
      const T* const from = static_cast<const T*>(s.packed) + places.only * s.width;
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int64_t column = begin + item * step;
        if (places.only >= 0 && column < s.width) x[item] = load<kVec>(from + column);
      }
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int64_t column = begin + item * step;
        if (column < s.width) store(to + column, x[item]);
      }
      return;
    }
    for (int item = 0; item < kItems; ++item) {
      const int64_t column = begin + item * step;
      C sum[kVec] = {};
      for_each_place(args.places, shared, row, [&](int64_t place) {
        if (column >= s.width) return;
        C x[kVec];
        unpack(load<kVec>(static_cast<const T*>(s.packed) + place * s.width + column), x);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[i] += x[i];
      });
      if (column < s.width) store(to + column, pack<T>(sum));
    }
  });
}

template <class T, int kVec>
void scatter(const RowSelection& s, const PlaceIndex& places, cudaStream_t stream) {
  const Pieces<kItems> pieces(s.source_rows, s.width / kVec);
  pieces.launch_over(scatter_rows<T, kVec>, ScatterArgs{.s = s, .places = places, .pieces = pieces}, stream);
}

}  // namespace

size_t index_select_cat_backward_workspace(const IndexSelectCatParams& p) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < p.num_selections; ++i)  // one after the other
    bytes = std::max(bytes, place_lists_bytes(p.selections[i].num_rows, p.selections[i].source_rows));
  return static_cast<size_t>(bytes);
}

void index_select_cat_backward(const IndexSelectCatParams& p, const Stream& where) {
  const auto stream = static_cast<cudaStream_t>(where.stream);
  for (int64_t i = 0; i < p.num_selections; ++i) {
    const RowSelection& s = p.selections[i];
    if (s.source_rows == 0 || s.width == 0) continue;
    const PlaceIndex places = make_place_lists(s.index, s.num_rows, s.source_rows, where.workspace, where);
    const bool vectors =
        in_vectors(s.width, p.dtype) && is_aligned(s.packed) && rows_are_aligned(s.source, s.row_stride, p.dtype);
    with_element(p.dtype, [&](auto element) {
      using T = decltype(element);
      vectors ? scatter<T, kVectorOf<T>>(s, places, stream) : scatter<T, 1>(s, places, stream);
    });
  }
}

}  // namespace xformers::cuda
