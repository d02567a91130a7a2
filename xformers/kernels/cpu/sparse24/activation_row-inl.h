// Activations of rows before they are packed or after they were multiplied, and their gradients. In fp32 (fp64), to the
// precision of fp32, so that one piece of code serves all narrower types.
#pragma once

#include "xformers/kernels/cpu/bias_act_dropout/activation-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// fn.template operator()<kActivation>(), of those that sparse operators have.
template <class Fn>
HWY_INLINE void with_sparse_activation(Activation activation, const Fn& fn) {
  switch (activation) {
    case Activation::kRelu: return fn.template operator()<Activation::kRelu>();
    case Activation::kSquaredRelu: return fn.template operator()<Activation::kSquaredRelu>();
    case Activation::kGelu: return fn.template operator()<Activation::kGelu>();
    case Activation::kGeluExact: return fn.template operator()<Activation::kGeluExact>();
    default: return fn.template operator()<Activation::kNone>();
  }
}

// 0 where it is that in the compute type, so that silu(-inf) is NaN, as x / (1 + exp(-x)) is.
template <class C>
HWY_INLINE Vec<C> sigmoid_of_gate(Vec<C> x) {
  const auto bounded = bounded_for_sigmoid<C>(x);
  return hn::IfThenZeroElse(hn::Lt(x, bounded), sigmoid<C>(bounded));
}

template <class C>
HWY_NOINLINE void activate_in_place(Activation activation, C* row, ptrdiff_t count) {
  with_sparse_activation(activation, [&]<Activation kActivation>() {
    for_each_vec<C>(count,
                    [&](ptrdiff_t i, auto n) { store_n(activate<kActivation, C>(load_n(row + i, n)), row + i, n); });
  });
}

// Rows are widened in pieces.
inline constexpr ptrdiff_t kActivationPiece = 64;

// out = activation(x), or silu(x) * x2 where there is an x2.
template <class T>
HWY_INLINE void activated_row(Activation activation, const T* x, const T* x2, ptrdiff_t count, T* out) {
  using C = Compute<T>;
  alignas(64) C row[kActivationPiece];
  for (ptrdiff_t begin = 0; begin < count; begin += kActivationPiece) {
    const ptrdiff_t here = min_of(kActivationPiece, count - begin);
    for_each_vec<C>(here, [&](ptrdiff_t i, auto n) {
      auto v = load_n(x + begin + i, n);
      if (x2) v = hn::Mul(hn::Mul(v, sigmoid_of_gate<C>(v)), load_n(x2 + begin + i, n));
      store_n(v, row + i, n);
    });
    if (!x2) activate_in_place(activation, row, here);
    for_each_vec<C>(here, [&](ptrdiff_t i, auto n) { store_n(load_n(row + i, n), out + begin + i, n); });
  }
}

template <class C>
HWY_NOINLINE void slope_in_place(Activation activation, C* row, ptrdiff_t count) {
  with_sparse_activation(activation, [&]<Activation kActivation>() {
    for_each_vec<C>(
        count, [&](ptrdiff_t i, auto n) { store_n(activation_slope<kActivation, C>(load_n(row + i, n)), row + i, n); });
  });
}

// dx = dout * activation'(x); with a gate, that of x, and dx2 = dout * silu(x).
template <class T>
HWY_INLINE void activated_row_backward(Activation activation, const T* x, const T* x2, const T* dout, ptrdiff_t count,
                                       T* dx, T* dx2) {
  using C = Compute<T>;
  alignas(64) C row[kActivationPiece];
  const auto one = hn::Set(Tag<C>(), C(1));
  for (ptrdiff_t begin = 0; begin < count; begin += kActivationPiece) {
    const ptrdiff_t here = min_of(kActivationPiece, count - begin);
    for_each_vec<C>(here, [&](ptrdiff_t i, auto n) { store_n(load_n(x + begin + i, n), row + i, n); });
    if (!x2) slope_in_place(activation, row, here);
    for_each_vec<C>(here, [&](ptrdiff_t i, auto n) {
      const auto v = load_n(row + i, n), gradient = load_n(dout + begin + i, n);
      if (!x2) return store_n(hn::Mul(gradient, v), dx + begin + i, n);
      const auto s = sigmoid_of_gate<C>(v), slope = hn::Mul(s, hn::MulAdd(v, hn::Sub(one, s), one));
      store_n(hn::Mul(hn::Mul(gradient, load_n(x2 + begin + i, n)), slope), dx + begin + i, n);
      store_n(hn::Mul(gradient, hn::Mul(v, s)), dx2 + begin + i, n);
    });
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
