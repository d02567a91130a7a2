// Rows of the tensors that are merged: who works on which, and reading and writing a thread's share.
//
// 2^log_lanes (lanes) neighbouring threads share a row; thread l of them owns the elements [l * kVector, + kVector) of
// every lanes * kVector. A row is (batch, query, group, head), the last fastest.
#pragma once

#include <algorithm>
#include <cstdint>

#include "xformers/kernels/cuda/base/launch.h"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/merge/alike_args.h"

namespace xformers::cuda {

inline constexpr int kMergeThreads = 256;

struct MergeRow {
  uint32_t batch, query, group, head;

  __device__ __forceinline__ MergeRow(const RowDivisors& by, uint32_t index) {
    const auto heads = by.heads.divide(index), groups = by.groups.divide(heads.quotient),
               queries = by.queries.divide(groups.quotient);
    head = heads.rest, group = groups.rest, query = queries.rest, batch = queries.quotient;
  }
  // Of HeadsTensor in elements, of AlikeStrides in their units.
  __device__ __forceinline__ int64_t in(const HeadsTensor& t) const {
    return batch * t.batch_stride + query * t.seq_stride + group * t.group_stride + head * t.head_stride;
  }
  __device__ __forceinline__ uint32_t in(const AlikeStrides& s) const {
    return batch * s.batch + query * s.query + group * s.group + head * s.head;
  }
  template <class T>
  __device__ __forceinline__ T* at(const HeadsTensor& t) const {
    return static_cast<T*>(t.data) + in(t);
  }
};

// kVector elements from `first` on, those behind `dim` zeros that nobody stores; whole where rows are aligned.
template <bool kAligned, int kVector, class T>
__device__ __forceinline__ Packed<T, kVector> load_row(const T* row, int first, int dim) {
  if constexpr (kAligned) {
    return load<kVector>(row + first);
  } else {
    Packed<T, kVector> elements;
#pragma unroll
    for (int i = 0; i < kVector; ++i) elements.at[i] = first + i < dim ? row[first + i] : to_element<T>(0.0f);
    return elements;
  }
}
template <bool kAligned, class T, int kVector>
__device__ __forceinline__ void store_row(const Packed<T, kVector>& elements, T* row, int first, int dim) {
  if constexpr (kAligned) {
    store(row + first, elements);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (first + i < dim) row[first + i] = elements.at[i];
    }
  }
}

// The same of a tensor whose dtype is known at run time alone.
template <bool kAligned, class C, int kVector>
__device__ __forceinline__ void load_any(C (&x)[kVector], DType dtype, const MergeRow& row, const HeadsTensor& t,
                                         int first, int dim) {
  with_element(dtype, [&]<class O>(O) { unpack(load_row<kAligned, kVector>(row.at<const O>(t), first, dim), x); });
}
template <bool kAligned, class C, int kVector>
__device__ __forceinline__ void store_any(const C (&x)[kVector], DType dtype, const MergeRow& row, const HeadsTensor& t,
                                          int first, int dim) {
  with_element(dtype, [&]<class O>(O) { store_row<kAligned>(pack<O>(x), row.at<O>(t), first, dim); });
}

// An lse is fp32, or either type where anything is computed in fp64.
template <class C>
__device__ __forceinline__ C load_lse(DType dtype, const void* data, int64_t at) {
  if (std::is_same_v<C, double> && dtype == DType::kFloat64)
    return static_cast<C>(static_cast<const double*>(data)[at]);
  return static_cast<C>(static_cast<const float*>(data)[at]);
}
template <class C>
__device__ __forceinline__ void store_lse(C x, DType dtype, void* data, int64_t at) {
  if (std::is_same_v<C, double> && dtype == DType::kFloat64) {
    static_cast<double*>(data)[at] = static_cast<double>(x);
  } else {
    static_cast<float*>(data)[at] = static_cast<float>(x);
  }
}

// e^(x - origin) where -inf is nothing, whatever the origin.
template <class C>
__device__ __forceinline__ C share(C x, C origin) {
  if (x == -static_cast<C>(INFINITY)) return 0;
  if constexpr (std::is_same_v<C, double>) {
    return exp(x - origin);
  } else {
    return expf(x - origin);
  }
}

// Of a share and the sum of all shares: a part that saw no key weighs nothing, beside NaN too.
template <class C>
__device__ __forceinline__ C weight_of(C share, C inverse_total) {
  return share == 0 ? C(0) : share * inverse_total;
}
// Of the largest lse, which ignores NaN, and the sum, which keeps it.
template <class C>
__device__ __forceinline__ C merged_lse(C highest, C total) {
  return total == 0 ? -static_cast<C>(INFINITY) : highest + log(total);
}

// One row of every part.
template <class T>
class PartRows {
 public:
  __device__ __forceinline__ PartRows(const MergePart* many, const PartList& few, const MergeRow& row)
      : many_(many), few_(few), row_(row) {}
  __device__ __forceinline__ T* out(int part) const { return row_.at<T>(at(part).out); }
  template <class C>
  __device__ __forceinline__ C lse(int part, DType dtype) const {
    const HeadsTensor& t = at(part).lse;
    return load_lse<C>(dtype, t.data, row_.in(t));
  }
  template <class C>
  __device__ __forceinline__ void set_lse(int part, DType dtype, C x) const {
    const HeadsTensor& t = at(part).lse;
    store_lse(x, dtype, t.data, row_.in(t));
  }

 private:
  __device__ __forceinline__ const MergePart& at(int part) const { return many_ ? many_[part] : few_.at[part]; }

  const MergePart* many_;
  const PartList& few_;
  const MergeRow& row_;
};

// What makes weights of a row's lses.
template <class C>
class Shares {
  C highest_ = -static_cast<C>(INFINITY), total_ = 0, inverse_;

 public:
  template <class Parts>
  __device__ __forceinline__ Shares(const Parts& parts, int num_parts, DType lse_dtype) {
    for (int i = 0; i < num_parts; ++i) highest_ = max(highest_, parts.template lse<C>(i, lse_dtype));
    for (int i = 0; i < num_parts; ++i) total_ += share(parts.template lse<C>(i, lse_dtype), highest_);
    inverse_ = 1 / total_;
  }
  __device__ __forceinline__ C weight(C lse) const { return weight_of(share(lse, highest_), inverse_); }
  __device__ __forceinline__ C lse() const { return merged_lse(highest_, total_); }
};

// A thread's place in a row.
struct RowLane {
  uint32_t index;               // of the row
  int lanes, dim, step, first;  // elements [first, + kVector) of every `step`
  int num_parts;

  template <class T>
  static __device__ __forceinline__ RowLane of(const MergeArgs& args) {
    const int lanes = 1 << args.log_lanes;
    return {.index = blockIdx.x * (kMergeThreads >> args.log_lanes) + (threadIdx.x >> args.log_lanes),
            .lanes = lanes,
            .dim = static_cast<int>(args.shape.head_dim),
            .step = lanes * kVectorOf<T>,
            .first = (static_cast<int>(threadIdx.x) & (lanes - 1)) * kVectorOf<T>,
            .num_parts = static_cast<int>(args.shape.num_parts)};
  }
};

// KernelOf<T, C, aligned, batch>: T of the parts; C: what is computed in; `batch` parts are read at once.
template <template <class, class, bool, int> class KernelOf>
void launch_merge(const MergeArgs& args, cudaStream_t stream) {
  const MergeShape& s = args.shape;
  const int64_t per_block = kMergeThreads >> args.log_lanes;
  const int64_t blocks = (s.num_rows() + per_block - 1) / per_block;
  const bool wide = s.dtype == DType::kFloat64 || s.out_dtype == DType::kFloat64 || s.lse_dtype == DType::kFloat64;
  with_element(s.dtype, [&]<class T>(T) {
    void (*kernel)(MergeArgs) =
        args.aligned ? KernelOf<T, double, true, 2>::get() : KernelOf<T, double, false, 2>::get();
    if constexpr (!std::is_same_v<T, double>) {
      if (!wide) kernel = args.aligned ? KernelOf<T, float, true, 4>::get() : KernelOf<T, float, false, 4>::get();
    }
    launch_with(kernel, blocks, 1, kMergeThreads, 0, stream, args);
  });
}

}  // namespace xformers::cuda
