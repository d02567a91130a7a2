// silu(x1) * x2 and its gradients in one pass each. Compiled once per instruction set.
#include "xformers/kernels/cpu/base/exp-inl.h"
#include "xformers/kernels/cpu/base/pieces-inl.h"
#include "xformers/kernels/cpu/swiglu/isa_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

template <class T>
T* row_at(const GateRows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.stride;
}

// 0 where it is that in the compute type, so that silu(-inf) is NaN, as x / (1 + exp(-x)) is.
template <class T>
HWY_INLINE Vec<Compute<T>> vanishing_sigmoid(Vec<Compute<T>> x) {
  const auto bounded = bounded_for_sigmoid<Compute<T>>(x);
  return hn::IfThenZeroElse(hn::Lt(x, bounded), sigmoid<T>(bounded));
}

template <class T, bool kStream>
void forward(const GateFwdParams& p, const Threads& threads) {
  for_each_piece(threads, p.rows, p.width, 3 * sizeof(T), [&](int64_t row, int64_t begin, int64_t end) {
    const T* HWY_RESTRICT x1 = row_at<const T>(p.x1, row) + begin;
    const T* HWY_RESTRICT x2 = row_at<const T>(p.x2, row) + begin;
    map_row<kStream>(row_at<T>(p.h, row) + begin, end - begin, [&](ptrdiff_t i, auto n) {
      const auto a = load_n(x1 + i, n);
      return hn::Mul(hn::Mul(a, vanishing_sigmoid<T>(a)), load_n(x2 + i, n));
    });
  });
}

template <class T, bool kStream>
void backward(const GateBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  for_each_piece(threads, p.rows, p.width, 6 * sizeof(T), [&](int64_t row, int64_t begin, int64_t end) {
    const T* x1 = row_at<const T>(p.x1, row) + begin;
    const T* x2 = row_at<const T>(p.x2, row) + begin;
    const T* dh = row_at<const T>(p.dh, row) + begin;
    T* const out1 = row_at<T>(p.dx1, row) + begin;
    T* const out2 = row_at<T>(p.dx2, row) + begin;
    T* const h = p.h.data ? row_at<T>(p.h, row) + begin : nullptr;
    alignas(64) T buffer1[kPiece], buffer2[kPiece];
    T* const dx1 = kStream ? buffer1 : out1;
    T* const dx2 = kStream ? buffer2 : out2;
    const auto one = hn::Set(Tag<C>(), C(1));
    for_each_vec<C>(end - begin, [&](ptrdiff_t i, auto n) {
      const auto a = load_n(x1 + i, n), b = load_n(x2 + i, n), gradient = load_n(dh + i, n);
      const auto s = vanishing_sigmoid<T>(a);
      const auto silu = hn::Mul(a, s);
      store_n(hn::Mul(gradient, silu), dx2 + i, n);
      const auto slope = hn::Mul(s, hn::MulAdd(a, hn::Sub(one, s), one));
      store_n(hn::Mul(hn::Mul(gradient, b), slope), dx1 + i, n);
      if (h) store_n(hn::Mul(silu, b), h + i, n);
    });
    if constexpr (kStream) {
      const size_t bytes = static_cast<size_t>(end - begin) * sizeof(T);
      stream_bytes(out1, buffer1, bytes);
      stream_bytes(out2, buffer2, bytes);
    }
  });
}

}  // namespace

void gate_forward(const GateFwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>() {
    const bool stream = p.rows * p.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    stream ? forward<T, true>(p, threads) : forward<T, false>(p, threads);
  });
}

void gate_backward(const GateBwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>() {
    const bool stream = p.rows * p.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    stream ? backward<T, true>(p, threads) : backward<T, false>(p, threads);
  });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
