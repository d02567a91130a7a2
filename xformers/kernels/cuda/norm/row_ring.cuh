// The next rows of x and dout on their way to shared memory, without registers: the bytes in flight, not the threads,
// decide how fast a kernel that keeps sums in registers reads. Each thread copies the vectors that it alone will read,
// so that nobody waits for anybody.
#pragma once

#include "xformers/kernels/cuda/base/async_copy.cuh"
#include "xformers/kernels/cuda/base/row_share.cuh"

namespace xformers::cuda {

template <class T, int kVec, int kItems>
struct RowRing {
  using Vector = Packed<T, kVec>;
  using First = std::conditional_t<kVec == 1, T, uint32_t>;                        // holds the first element of a row
  static constexpr int kRowBytes = 2 * kItems * static_cast<int>(sizeof(Vector));  // of a thread
  static constexpr int kRows = kRowBytes <= 64 ? 4 : 2;
  static constexpr int kThreadBytes = kRows * (kRowBytes + static_cast<int>(sizeof(First)));

  Vector* vectors;  // [kRows, x and dout, kItems, threads], from this thread's on
  First* firsts;    // [kRows, threads]

  __device__ __forceinline__ explicit RowRing(void* smem)
      : vectors(static_cast<Vector*>(smem) + threadIdx.x),
        firsts(reinterpret_cast<First*>(static_cast<Vector*>(smem) + 2 * kItems * kRows * blockDim.x) + threadIdx.x) {}

  __device__ __forceinline__ Vector* vector(int slot, int tensor, int item) const {
    return vectors + static_cast<unsigned>((slot * 2 + tensor) * kItems + item) * blockDim.x;
  }

  // A row that is not there (valid false) is not looked at.
  template <bool kFirst>
  __device__ __forceinline__ void fetch(int slot, const T* x, const T* dout, const ThreadGroup& group, int width,
                                        bool valid) const {
    if (valid) {
#pragma unroll
      for (int item = 0; item < kItems; ++item) {
        const int column = (item * group.size + group.rank) * kVec;
        if (column >= width) continue;
        copy_async(vector(slot, 0, item), x + column);
        copy_async(vector(slot, 1, item), dout + column);
      }
      if constexpr (kFirst) copy_async(firsts + slot * blockDim.x, x);
    }
    end_of_copies();
  }
  // Until the oldest row is there.
  __device__ __forceinline__ void wait() const { wait_for_copies<kRows - 1>(); }

  __device__ __forceinline__ void numbers(int slot, int tensor, int item, Compute<T> (&to)[kVec]) const {
    unpack(*vector(slot, tensor, item), to);
  }
  // Whatever lies there, of a row that is none too.
  __device__ __forceinline__ void take(int slot, RowShare<T, kVec, kItems>& x, RowShare<T, kVec, kItems>& dout) const {
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
      x.items[item] = *vector(slot, 0, item);
      dout.items[item] = *vector(slot, 1, item);
    }
  }
  __device__ __forceinline__ Compute<T> first(int slot) const {
    return to_compute(*reinterpret_cast<const T*>(firsts + slot * blockDim.x));
  }
};

}  // namespace xformers::cuda
