// The backward of index_select_cat: every row of a source has one owner, which adds up the gradients that belong to it
// in the order of their places. One kernel for up to 16 sources.
#include <algorithm>
#include <span>

#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/indexing/indexing_cuda.h"
#include "xformers/kernels/cuda/indexing/pieces.cuh"
#include "xformers/kernels/cuda/indexing/places.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kItems = 4, kMaxSources = 16;

struct Source {
  RowSelection s;
  PlaceIndex places;
  Pieces<kItems> pieces;
  int64_t first_block;
};

struct ScatterArgs {
  Source sources[kMaxSources];
  int count = 0;
};

template <class T, int kVec>
__global__ void __launch_bounds__(kPieceThreads, kPieceBlocks)
    index_scatter_rows(const __grid_constant__ ScatterArgs args) {
  using C = Compute<T>;
  __shared__ PlacesShared shared;
  int which = 0;
  while (which + 1 < args.count && blockIdx.x >= args.sources[which + 1].first_block) ++which;
  const Source& source = args.sources[which];
  const RowSelection& s = source.s;
  const auto [row, piece] = source.pieces.at(blockIdx.x - source.first_block);
  wait_for_kernel_before();
  const RowPlaces places = places_of(source.places, shared, row);
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
    for_each_place(source.places, shared, row, [&](int64_t place) {
      if (column >= s.width) return;
      C x[kVec];
      unpack(load<kVec>(static_cast<const T*>(s.packed) + place * s.width + column), x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += x[i];
    });
    if (column < s.width) store(to + column, pack<T>(sum));
  }
}

}  // namespace

size_t index_select_cat_backward_workspace(const IndexSelectCatParams& p) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < p.num_selections; ++i)
    bytes += place_lists_bytes(p.selections[i].num_rows, p.selections[i].source_rows);
  return static_cast<size_t>(bytes);
}

void index_select_cat_backward(const IndexSelectCatParams& p, const Stream& where) {
  check(p);
  const auto stream = static_cast<cudaStream_t>(where.stream);
  auto* lists = static_cast<char*>(where.workspace);
  for (int64_t first = 0; first < p.num_selections; first += kMaxSources) {
    const int64_t count = std::min<int64_t>(kMaxSources, p.num_selections - first);
    bool vectors = true;
    int64_t widest = 0;
    for (const RowSelection& s : std::span(p.selections + first, count)) {
      vectors &=
          in_vectors(s.width, p.dtype) && is_aligned(s.packed) && rows_are_aligned(s.source, s.row_stride, p.dtype);
      widest = std::max(widest, s.width);
    }
    const int64_t per_vector = vectors ? 16 / static_cast<int64_t>(size_of(p.dtype)) : 1;
    const int threads = Pieces<kItems>::threads_for(widest / per_vector);
    ScatterArgs args;
    int64_t blocks = 0;
    for (const RowSelection& s : std::span(p.selections + first, count)) {
      if (s.source_rows == 0 || s.width == 0) continue;
      const PlaceIndex places = make_place_lists(s.index, s.num_rows, s.source_rows, lists, where);
      lists += place_lists_bytes(s.num_rows, s.source_rows);
      const Pieces<kItems> pieces(s.source_rows, s.width / per_vector, threads);
      args.sources[args.count++] = {.s = s, .places = places, .pieces = pieces, .first_block = blocks};
      blocks += pieces.all;
    }
    with_vectors(p.dtype, vectors, [&]<class T, int kVec>() {
      launch_after(index_scatter_rows<T, kVec>, blocks, 1, threads, stream, args);
    });
  }
}

}  // namespace xformers::cuda
