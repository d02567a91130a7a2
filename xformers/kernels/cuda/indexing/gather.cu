// index_select_cat: one kernel for up to 32 sources. Elements are moved as they are, in units of up to 16 bytes; a team
// of lanes takes a piece of a row of kItems units per lane.
#include <algorithm>

#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/indexing/indexing_cuda.h"
#include "xformers/kernels/cuda/indexing/places.cuh"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int kThreads = 256, kItems = 4, kMaxSelections = 32;

struct Source {
  const char* data;
  char* packed;
  const int64_t* index;
  int64_t stride;  // in units, as the width
  int64_t width, pieces, source_rows, num_rows;
  Divisor<int64_t> by_pieces;
  int64_t first_block;
  int shift;  // 1 << shift lanes are a team
};

struct GatherArgs {
  Source sources[kMaxSelections];
  int count = 0;
};

template <class Unit>
__global__ void __launch_bounds__(kThreads, 6) gather_rows(const __grid_constant__ GatherArgs args) {
  int which = 0;
  while (which + 1 < args.count && blockIdx.x >= args.sources[which + 1].first_block) ++which;
  const Source& source = args.sources[which];
  const int team = 1 << source.shift, lane = static_cast<int>(threadIdx.x) & (team - 1);
  const int64_t first_task = (blockIdx.x - source.first_block) * (kThreads >> source.shift);
  const int64_t task = first_task + (threadIdx.x >> source.shift), place = source.by_pieces.quotient(task);
  const int64_t begin = ((task - place * source.pieces) * kItems << source.shift) + lane;
  Unit* const to = reinterpret_cast<Unit*>(source.packed) + place * source.width + begin;
  wait_for_kernel_before();
  if (place >= source.num_rows) return;
  const int64_t row = source.index[place], left = source.width - begin;
  const Unit* const from = reinterpret_cast<const Unit*>(source.data) + row * source.stride + begin;
  Unit units[kItems];
  if (!in_range(row, source.source_rows)) {
    memset(units, 0xff, sizeof(units));  // NaN in every floating type
  } else if (left > (kItems - 1) * team) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) units[i] = from[i * team];
  } else {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (i * team < left) units[i] = from[i * team];
    }
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (i * team < left) to[i * team] = units[i];
  }
}

// The widest unit that fits all addresses, strides and widths.
int64_t unit_of(const RowSelection* selections, int64_t count, int64_t element) {
  int64_t unit = 16;
  for (int64_t i = 0; i < count; ++i) {
    const RowSelection& s = selections[i];
    const auto fits = [&] {
      return is_aligned(s.source, unit) && is_aligned(s.packed, unit) && s.row_stride * element % unit == 0 &&
             s.width * element % unit == 0;
    };
    while (unit > element && !fits()) unit /= 2;
  }
  return unit;
}

}  // namespace

void index_select_cat(const IndexSelectCatParams& p, const Stream& where) {
  check(p);
  const int64_t element = static_cast<int64_t>(size_of(p.dtype));
  for (int64_t first = 0; first < p.num_selections; first += kMaxSelections) {
    const int64_t count = std::min<int64_t>(kMaxSelections, p.num_selections - first);
    const int64_t unit = unit_of(p.selections + first, count, element);
    GatherArgs args;
    int64_t blocks = 0;
    for (int64_t i = 0; i < count; ++i) {
      const RowSelection& s = p.selections[first + i];
      const int64_t width = s.width * element / unit;
      if (width == 0 || s.num_rows == 0) continue;
      int shift = 0;
      while (shift < 5 && (kItems << shift) < width) ++shift;
      const int64_t pieces = (width + (kItems << shift) - 1) / (kItems << shift);
      args.sources[args.count++] = {.data = static_cast<const char*>(s.source),
                                    .packed = static_cast<char*>(s.packed),
                                    .index = s.index,
                                    .stride = s.row_stride * element / unit,
                                    .width = width,
                                    .pieces = pieces,
                                    .source_rows = s.source_rows,
                                    .num_rows = s.num_rows,
                                    .by_pieces = Divisor<int64_t>(pieces),
                                    .first_block = blocks,
                                    .shift = shift};
      blocks += ((s.num_rows * pieces << shift) + kThreads - 1) / kThreads;
    }
    const auto kernel = unit == 16  ? gather_rows<uint4>
                        : unit == 8 ? gather_rows<uint2>
                        : unit == 4 ? gather_rows<unsigned>
                                    : gather_rows<unsigned short>;
    launch_after(kernel, blocks, 1, kThreads, static_cast<cudaStream_t>(where.stream), args);
  }
}

}  // namespace xformers::cuda
