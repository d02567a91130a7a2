// Changing an `expand`ed tensor without writing its repetitions out.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/contiguous.h>
#include <ATen/ops/expand.h>
#include <ATen/ops/narrow.h>

namespace xformers::ops {

// fn(t), computed once along those of the first `dims` dimensions that `expand` repeats (stride 0), and expanded again.
// For fn that treats elements alike; differentiable where fn is; sizes may be symbolic.
template <class Fn>
at::Tensor map_unexpanded(const at::Tensor& t, int64_t dims, const Fn& fn) {
  at::Tensor once = t;
  for (int64_t dim = 0; dim < dims; ++dim) {
    if (t.sym_stride(dim) == 0 && t.sym_size(dim) > 1) once = once.narrow_symint(dim, 0, 1);
  }
  return once.is_same(t) ? fn(t) : fn(once).expand_symint(t.sym_sizes());
}

// Kernels take any strides but the last, which must be 1.
inline bool has_unit_last_stride(const at::Tensor& t) {
  return t.sym_stride(-1) == 1 || t.sym_size(-1) <= 1 || t.sym_numel() == 0;
}

inline at::Tensor with_unit_last_stride(const at::Tensor& t) {
  if (has_unit_last_stride(t)) return t;
  return map_unexpanded(t, t.dim() - 1, [](const at::Tensor& once) { return once.contiguous(); });
}

inline void give_unit_last_stride(at::Tensor& t) {
  if (!has_unit_last_stride(t)) t = with_unit_last_stride(t);
}

}  // namespace xformers::ops
