// Rows of the tensors that are merged: who works on which, and reading and writing a thread's share.
//
// 2^log_lanes (lanes) neighbouring threads share a row; thread l of them owns the elements [l * kVector, + kVector) of
// every lanes * kVector, two such vectors at a time. A row is (batch, query, group, head), the last fastest.
#pragma once

#include <algorithm>
#include <cstdint>

#include "xformers/kernels/cuda/arch/mma.cuh"
#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/base/vector.cuh"
#include "xformers/kernels/cuda/merge/merge_args.h"

namespace xformers::cuda {

inline constexpr int kMergeThreads = 256;

inline constexpr int kOwnVectors = 2;  // what a row costs beside its elements is then shared by 32 bytes of each part

struct MergeRow {
  int64_t batch, query, group, head;

  __device__ __forceinline__ MergeRow(const MergeArgs& args, uint32_t index) {
    head = args.heads.divide(index);
    group = args.groups.divide(index);
    query = args.queries.divide(index);
    batch = index;
  }
  __device__ __forceinline__ int64_t offset(const HeadsTensor& t) const {
    return batch * t.batch_stride + query * t.seq_stride + group * t.group_stride + head * t.head_stride;
  }
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

// How a kernel reads its parts.
enum class PartAccess { kAny, kAligned, kAlignedSameStrides };

// Blocks that share a multiprocessor: latency is hidden by many threads rather than by many registers.
enum class MergePass { kForward, kBackward };
template <MergePass kPass, class C, PartAccess kAccess, int kBatch>
inline constexpr int kMergeBlocks = std::is_same_v<C, double> || kAccess != PartAccess::kAlignedSameStrides
                                        ? 2
                                        : (kBatch == 2 ? 3 : 2) + (kPass == MergePass::kForward ? 1 : 0);

// One row of every part.
template <class T, PartAccess kAccess>
class PartRows {
  static constexpr bool kSame = kAccess == PartAccess::kAlignedSameStrides;

 public:
  static constexpr bool kAligned = kAccess != PartAccess::kAny;

  __device__ __forceinline__ PartRows(const MergePart* many, const PartList& few, const MergeRow& row)
      : many_(many), few_(few), row_(row) {
    if constexpr (kSame) out_at_ = row.offset(few.at[0].out), lse_at_ = row.offset(few.at[0].lse);
  }
  __device__ __forceinline__ T* out(int part) const {
    const HeadsTensor& t = at(part).out;
    return static_cast<T*>(t.data) + (kSame ? out_at_ : row_.offset(t));
  }
  template <class C>
  __device__ __forceinline__ C lse(int part, DType dtype) const {
    const HeadsTensor& t = at(part).lse;
    return load_lse<C>(dtype, t.data, kSame ? lse_at_ : row_.offset(t));
  }
  template <class C>
  __device__ __forceinline__ void set_lse(int part, DType dtype, C x) const {
    const HeadsTensor& t = at(part).lse;
    store_lse(x, dtype, t.data, kSame ? lse_at_ : row_.offset(t));
  }

 private:
  __device__ __forceinline__ const MergePart& at(int part) const {
    if constexpr (kSame) return few_.at[part];
    return many_ ? many_[part] : few_.at[part];
  }

  const MergePart* many_;
  const PartList& few_;
  const MergeRow& row_;
  int64_t out_at_ = 0, lse_at_ = 0;
};

// KernelOf<T, C, access, batch>: T of the parts; C: what is computed in; `batch` parts are read at once, as many
// whatever their strides, so that these don't change a bit of the result.
template <template <class, class, PartAccess, int> class KernelOf>
void launch_merge(const MergeArgs& args, cudaStream_t stream) {
  const MergeShape& s = args.shape;
  const int64_t per_block = kMergeThreads >> args.log_lanes;
  const auto blocks = static_cast<unsigned>((s.num_rows() + per_block - 1) / per_block);
  const bool wide = s.dtype == DType::kFloat64 || s.out_dtype == DType::kFloat64 || s.lse_dtype == DType::kFloat64;
  const bool two = s.num_parts <= 2;
  with_element(s.dtype, [&](auto type) {
    using T = decltype(type);
    using enum PartAccess;
    void (*kernel)(MergeArgs) =
        args.aligned ? KernelOf<T, double, kAligned, 2>::get() : KernelOf<T, double, kAny, 2>::get();
    if constexpr (!std::is_same_v<T, double>) {
      if (!wide && !args.aligned) {
        kernel = two ? KernelOf<T, float, kAny, 2>::get() : KernelOf<T, float, kAny, 4>::get();
      } else if (!wide && !args.same_strides) {
        kernel = two ? KernelOf<T, float, kAligned, 2>::get() : KernelOf<T, float, kAligned, 4>::get();
      } else if (!wide) {
        kernel =
            two ? KernelOf<T, float, kAlignedSameStrides, 2>::get() : KernelOf<T, float, kAlignedSameStrides, 4>::get();
      }
    }
    kernel<<<blocks, kMergeThreads, 0, stream>>>(args);
  });
  XFORMERS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace xformers::cuda
