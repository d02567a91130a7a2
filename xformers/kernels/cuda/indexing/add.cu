// scaled_index_add: every row that changes has one owner, the first of the places that point to it, which adds up all
// of them in their order.
#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/indexing/indexing_cuda.h"
#include "xformers/kernels/cuda/indexing/pieces.cuh"
#include "xformers/kernels/cuda/indexing/places.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kItems = 2, kAddBlocks = 4;

struct AddArgs {
  ScaledIndexAddParams p;
  PlaceIndex places;
  Pieces<kItems> pieces;  // of rows of middle * width elements
  unsigned vectors_of_width;
  Divisor<int64_t> by_width;  // by vectors_of_width
};

// A thread's vectors of a piece: kItems of them, blockDim.x apart.
struct Spots {
  int64_t first, middle;  // the block's first vector, and its middle index
  unsigned rest;          // its place in the width; from here on 32-bit division

  __device__ __forceinline__ Spots(const AddArgs& args, int64_t piece) : first(piece * kItems * blockDim.x) {
    middle = args.by_width.quotient(first);
    rest = static_cast<unsigned>(first - middle * args.vectors_of_width);
  }
};

struct Spot {
  int64_t middle, column;  // column in vectors
  bool valid;

  __device__ __forceinline__ Spot(const AddArgs& args, const Spots& spots, int item) {
    const unsigned step = item * blockDim.x + threadIdx.x, vector = spots.rest + step;
    middle = spots.middle + vector / args.vectors_of_width;
    column = vector % args.vectors_of_width;
    valid = spots.first + step < args.pieces.vectors;
  }
  template <int kVec>
  __device__ __forceinline__ int64_t of(const RowsTensor& t, int64_t row) const {
    return row * t.row_stride + middle * t.middle_stride + column * kVec;
  }
};

template <int kVec, class C>
__device__ __forceinline__ void factor_of(const ScaledIndexAddParams& p, int64_t column, C (&factor)[kVec]) {
#pragma unroll
  for (int i = 0; i < kVec; ++i) factor[i] = 1;
  if (p.scaling) load_as(p.scaling, p.scaling_dtype, column * kVec, factor);
#pragma unroll
  for (int i = 0; i < kVec; ++i) factor[i] *= static_cast<C>(p.alpha);
}

// Of a row that several places point to: the first of them adds all.
template <class T, int kVec>
__device__ __noinline__ void add_repeated(const AddArgs& args, PlacesShared& shared, int64_t place, int64_t row,
                                          int64_t piece) {
  using C = Compute<T>;
  const ScaledIndexAddParams& p = args.p;
  const T* const source = static_cast<const T*>(p.source.data);
  T* const input = static_cast<T*>(p.input.data);
  const Spots spots(args, piece);
  for (int item = 0; item < kItems; ++item) {
    const Spot spot(args, spots, item);
    C sum[kVec], factor[kVec];
    bool begun = false, owned = true;
    for_each_place(args.places, shared, row, [&](int64_t other) {
      if (!begun) {
        begun = true;
        owned = other == place;
        if (owned && spot.valid) {
          unpack(load<kVec>(input + spot.of<kVec>(p.input, row)), sum);
          factor_of(p, spot.column, factor);
        }
      }
      if (!owned || !spot.valid) return;
      C x[kVec];
      unpack(load<kVec>(source + spot.of<kVec>(p.source, other)), x);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += factor[i] * x[i];
    });
    if (!owned) return;
    if (spot.valid) store(input + spot.of<kVec>(p.input, row), pack<T>(sum));
  }
}

template <class T, int kVec>
__global__ void __launch_bounds__(kPieceThreads, kAddBlocks) index_add_rows(const __grid_constant__ AddArgs args) {
  using C = Compute<T>;
  __shared__ PlacesShared shared;
  const ScaledIndexAddParams& p = args.p;
  const auto [place, piece] = args.pieces.at(blockIdx.x);
  wait_for_kernel_before();
  const int64_t row = p.index[place];
  if (!in_range(row, p.rows)) return;
  const Spots spots(args, piece);
  int64_t to[kItems];
  unsigned column[kItems];
  Packed<T, kVec> input[kItems], source[kItems];
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    const Spot spot(args, spots, item);
    to[item] = spot.valid ? spot.of<kVec>(p.input, row) : -1;
    column[item] = static_cast<unsigned>(spot.column);
    if (!spot.valid) continue;
    input[item] = load<kVec>(static_cast<const T*>(p.input.data) + to[item]);
    source[item] = load<kVec>(static_cast<const T*>(p.source.data) + spot.of<kVec>(p.source, place));
  }
  if (!is_only_place(args.places, row, place)) return add_repeated<T, kVec>(args, shared, place, row, piece);
#pragma unroll
  for (int item = 0; item < kItems; ++item) {
    if (to[item] < 0) continue;
    C sum[kVec], x[kVec], factor[kVec];
    unpack(input[item], sum);
    unpack(source[item], x);
    factor_of(p, column[item], factor);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[i] += factor[i] * x[i];
    store(static_cast<T*>(p.input.data) + to[item], pack<T>(sum));
  }
}

template <class T, int kVec>
void add(const ScaledIndexAddParams& p, const PlaceIndex& places, cudaStream_t stream) {
  const int64_t per_width = p.width / kVec, vectors = p.middle * per_width;
  const int threads = Pieces<kItems>::threads_for(vectors);
  const Pieces<kItems> pieces(p.num_indices, vectors, threads);
  launch_after(index_add_rows<T, kVec>, pieces.all, 1, threads, stream,
               AddArgs{.p = p,
                       .places = places,
                       .pieces = pieces,
                       .vectors_of_width = static_cast<unsigned>(per_width),
                       .by_width = Divisor<int64_t>(per_width)});
}

bool fits(const RowsTensor& t, DType dtype) {
  return rows_are_aligned(t.data, t.row_stride, dtype) && rows_are_aligned(t.data, t.middle_stride, dtype);
}

}  // namespace

size_t scaled_index_add_workspace(const ScaledIndexAddParams& p) {
  return static_cast<size_t>(place_lists_bytes(p.num_indices, p.rows));
}

void scaled_index_add(const ScaledIndexAddParams& p, const Stream& where) {
  check(p, WeightTypes::kAlso16Bit);
  if (p.num_indices == 0 || p.middle == 0 || p.width == 0 || p.rows == 0) return;
  const auto stream = static_cast<cudaStream_t>(where.stream);
  const PlaceIndex places = make_place_lists(p.index, p.num_indices, p.rows, where.workspace, where);
  const bool vectors =
      in_vectors(p.width, p.dtype) && fits(p.input, p.dtype) && fits(p.source, p.dtype) && is_aligned(p.scaling);
  with_vectors(p.dtype, vectors, [&]<class T, int kVec>() { add<T, kVec>(p, places, stream); });
}

}  // namespace xformers::cuda
