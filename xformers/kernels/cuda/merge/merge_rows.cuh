// Rows of the tensors that are merged: who works on which, and reading and writing a thread's share.
//
// 2^log_lanes (lanes) neighbouring threads share a row; thread l of them owns the elements [l * kVector, + kVector) of
// every lanes * kVector. A row is (batch, query, group, head), the last fastest.
#pragma once

#include <algorithm>
#include <cstdint>

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/merge/merge_args.h"

namespace xformers::cuda {

inline constexpr int kMergeThreads = 256;

struct MergeRow {
  int64_t batch, query, group, head;

  __device__ __forceinline__ MergeRow(const MergeArgs& args, uint32_t index) {
    head = args.heads.divide(index);
    group = args.groups.divide(index);
    query = args.queries.divide(index);
    batch = index;
  }
  __device__ __forceinline__ int64_t offset(const HeadsTensor& t) const { return t.offset(batch, query, group, head); }
  template <class T>
  __device__ __forceinline__ T* in(const HeadsTensor& t) const {
    return static_cast<T*>(t.data) + offset(t);
  }
};

// kVector elements as they lie in memory, in whole registers: 16-bit ones are only taken apart where they are used.
template <class T, int kVector>
struct alignas(sizeof(T) * kVector < 16 ? sizeof(T) * kVector : 16) Elements {
  static constexpr int kWords = static_cast<int>(sizeof(T)) * kVector / 4;
  uint32_t word[kWords];

  template <bool kAligned>
  static __device__ __forceinline__ Elements load(const T* row, int first, int dim) {
    if constexpr (kAligned) {
      return *reinterpret_cast<const Elements*>(row + first);
    } else {
      T elements[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) elements[i] = first + i < dim ? row[first + i] : to_element<T>(0.0f);
      Elements result;
      __builtin_memcpy(result.word, elements, sizeof(elements));
      return result;
    }
  }
  template <bool kAligned>
  __device__ __forceinline__ void store(T* row, int first, int dim) const {
    if constexpr (kAligned) {
      *reinterpret_cast<Elements*>(row + first) = *this;
    } else {
      T elements[kVector];
      __builtin_memcpy(elements, word, sizeof(elements));
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (first + i < dim) row[first + i] = elements[i];
      }
    }
  }

  template <class C>
  __device__ __forceinline__ C get(int i) const {
    if constexpr (std::is_same_v<T, double>) {
      return static_cast<C>(__hiloint2double(static_cast<int>(word[2 * i + 1]), static_cast<int>(word[2 * i])));
    } else if constexpr (std::is_same_v<T, float>) {
      return static_cast<C>(__uint_as_float(word[i]));
    } else {
      const float2 pair = unpack<T>(word[i / 2]);
      return static_cast<C>(i % 2 == 0 ? pair.x : pair.y);
    }
  }
  template <class C>
  __device__ __forceinline__ void set(const C (&x)[kVector]) {
    if constexpr (sizeof(T) == 2 && std::is_same_v<C, float>) {
#pragma unroll
      for (int i = 0; i < kVector; i += 2) word[i / 2] = pack<T>(x[i], x[i + 1]);
    } else {
      T elements[kVector];
#pragma unroll
      for (int i = 0; i < kVector; ++i) elements[i] = to_element<T>(x[i]);
      __builtin_memcpy(word, elements, sizeof(elements));
    }
  }
};

// Calls fn with a value of the element type.
template <class Fn>
__device__ __forceinline__ void with_element_here(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::kFloat32: return fn(float{});
    case DType::kFloat64: return fn(double{});
    case DType::kBFloat16: return fn(__nv_bfloat16{});
    case DType::kFloat16: return fn(__half{});
  }
}

// The same of a tensor whose dtype is known at run time alone.
template <bool kAligned, class C, int kVector>
__device__ __forceinline__ void load_any(C (&x)[kVector], DType dtype, const MergeRow& row, const HeadsTensor& t,
                                         int first, int dim) {
  with_element_here(dtype, [&](auto type) {
    using O = decltype(type);
    const auto elements = Elements<O, kVector>::template load<kAligned>(row.in<const O>(t), first, dim);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = elements.template get<C>(i);
  });
}
template <bool kAligned, class C, int kVector>
__device__ __forceinline__ void store_any(const C (&x)[kVector], DType dtype, const MergeRow& row, const HeadsTensor& t,
                                          int first, int dim) {
  with_element_here(dtype, [&](auto type) {
    using O = decltype(type);
    Elements<O, kVector> elements;
    elements.set(x);
    elements.template store<kAligned>(row.in<O>(t), first, dim);
  });
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

// Of the largest lse and the sum of all parts' shares of it: what makes weights of shares, and the lse of all.
template <class C>
__device__ __forceinline__ C inverse_of(C total) {
  return total == 0 ? C(0) : 1 / total;
}
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
  __device__ __forceinline__ T* out(int part) const { return row_.in<T>(at(part).out); }
  template <class C>
  __device__ __forceinline__ C lse(int part, DType dtype) const {
    const HeadsTensor& t = at(part).lse;
    return load_lse<C>(dtype, t.data, row_.offset(t));
  }
  template <class C>
  __device__ __forceinline__ void set_lse(int part, DType dtype, C x) const {
    const HeadsTensor& t = at(part).lse;
    store_lse(x, dtype, t.data, row_.offset(t));
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
    inverse_ = inverse_of(total_);
  }
  __device__ __forceinline__ C weight(C lse) const { return share(lse, highest_) * inverse_; }
  __device__ __forceinline__ C lse() const { return merged_lse(highest_, total_); }
};

// KernelOf<T, C, aligned, batch>: T of the parts; C: what is computed in; `batch` parts are read at once.
template <template <class, class, bool, int> class KernelOf>
void launch_merge(const MergeArgs& args, cudaStream_t stream) {
  const MergeShape& s = args.shape;
  const int64_t per_block = kMergeThreads >> args.log_lanes;
  const auto blocks = static_cast<unsigned>((s.num_rows() + per_block - 1) / per_block);
  const bool wide = s.dtype == DType::kFloat64 || s.out_dtype == DType::kFloat64 || s.lse_dtype == DType::kFloat64;
  with_element(s.dtype, [&](auto type) {
    using T = decltype(type);
    void (*kernel)(MergeArgs) =
        args.aligned ? KernelOf<T, double, true, 2>::get() : KernelOf<T, double, false, 2>::get();
    if constexpr (!std::is_same_v<T, double>) {
      if (!wide) kernel = args.aligned ? KernelOf<T, float, true, 4>::get() : KernelOf<T, float, false, 4>::get();
    }
    kernel<<<blocks, kMergeThreads, 0, stream>>>(args);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace xformers::cuda
