// silu(x1) * x2 and its gradients in one pass each. Compiled once per instruction set.
#include "xformers/kernels/cpu/base/exp-inl.h"
#include "xformers/kernels/cpu/base/pieces-inl.h"
#include "xformers/kernels/cpu/swiglu/gate_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

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
      if constexpr (kStream) {
        prefetch_behind(x1 + i);
        prefetch_behind(x2 + i);
      }
      const auto a = load_n(x1 + i, n);
      return hn::Mul(hn::Mul(a, vanishing_sigmoid<T>(a)), load_n(x2 + i, n));
    });
  });
}

// kOuts: dx1, dx2 and, where it is wanted, h.
template <class T, bool kStream, int kOuts>
void backward(const GateBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  for_each_piece(threads, p.rows, p.width, (3 + kOuts) * sizeof(T), [&](int64_t row, int64_t begin, int64_t end) {
    const T* x1 = row_at<const T>(p.x1, row) + begin;
    const T* x2 = row_at<const T>(p.x2, row) + begin;
    const T* dh = row_at<const T>(p.dh, row) + begin;
    T* outs[kOuts] = {row_at<T>(p.dx1, row) + begin, row_at<T>(p.dx2, row) + begin};
    if constexpr (kOuts > 2) outs[2] = row_at<T>(p.h, row) + begin;
    const auto one = hn::Set(Tag<C>(), C(1));
    map_rows(kStream, outs, end - begin, [&](ptrdiff_t i, auto n, Vec<C>* results) XFORMERS_INLINED {
      if constexpr (kStream) {
        prefetch_behind(x1 + i);
        prefetch_behind(x2 + i);
        prefetch_behind(dh + i);
      }
      const auto a = load_n(x1 + i, n), b = load_n(x2 + i, n), gradient = load_n(dh + i, n);
      const auto s = vanishing_sigmoid<T>(a);
      const auto silu = hn::Mul(a, s), slope = hn::Mul(s, hn::MulAdd(a, hn::Sub(one, s), one));
      results[0] = hn::Mul(hn::Mul(gradient, b), slope);
      results[1] = hn::Mul(gradient, silu);
      if constexpr (kOuts > 2) results[2] = hn::Mul(silu, b);
    });
  });
}

template <class T, bool kStream>
void backward(const GateBwdParams& p, const Threads& threads) {
  p.h.data ? backward<T, kStream, 3>(p, threads) : backward<T, kStream, 2>(p, threads);
}

}  // namespace

void gate_forward(const GateFwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) {
    const bool stream = p.rows * p.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    stream ? forward<T, true>(p, threads) : forward<T, false>(p, threads);
  });
}

void gate_backward(const GateBwdParams& p, const Threads& threads) {
  with_element(p.dtype, [&]<class T>(T) {
    const bool stream = p.rows * p.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    stream ? backward<T, true>(p, threads) : backward<T, false>(p, threads);
  });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
