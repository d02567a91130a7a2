// silu(x1) * x2 and its gradients in one pass each. Compiled once per instruction set.
#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/rows-inl.h"
#include "xformers/kernels/cpu/swiglu/isa_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

// exp(x), |x| up to 87, as exact as T shows. The rounding error of x * log2(e) would grow with x: fp32 takes it along.
template <class T>
HWY_INLINE Vec<float> exp_vec(Vec<float> x) {
  const Tag<float> d;
  const auto log2_e = hn::Set(d, 1.44269504f);
  const auto power = hn::Mul(x, log2_e);
  if constexpr (sizeof(T) < sizeof(float)) return exp2_vec<4>(power);
#if HWY_NATIVE_FMA
  const auto rest = hn::MulAdd(x, hn::Set(d, 1.92596303e-8f), hn::MulSub(x, log2_e, power));  // log2(e) has more digits
  const auto value = exp2_vec<5>(power);
  return hn::MulAdd(value, hn::Mul(rest, hn::Set(d, 0.693147181f)), value);
#else
  return hn::Exp(d, x);
#endif
}

// 1 / (1 + exp(-x)); 0 below the bound, where exp(-x) gets too large; NaN stays NaN.
template <class T>
HWY_INLINE Vec<Compute<T>> sigmoid(Vec<Compute<T>> x) {
  using C = Compute<T>;
  const Tag<C> d;
  const auto bound = hn::Set(d, sizeof(C) == 4 ? C(87) : C(700));
  const auto one = hn::Set(d, C(1));
  const auto minus_x = hn::Min(bound, hn::Max(hn::Neg(bound), hn::Neg(x)));  // NaN comes second and stays
  Vec<C> s;
  if constexpr (sizeof(C) == 8) {
    s = hn::Div(one, hn::Add(one, hn::Exp(d, minus_x)));
  } else {
    const auto sum = hn::Add(one, exp_vec<T>(minus_x));
    const auto near = hn::ApproximateReciprocal(sum);
    s = hn::Mul(near, hn::NegMulAdd(sum, near, hn::Set(d, C(2))));  // one Newton step
  }
  return hn::IfThenZeroElse(hn::Lt(x, hn::Neg(bound)), s);
}

template <class T>
T* row_at(const GateRows& rows, int64_t row) {
  return static_cast<T*>(rows.data) + row * rows.stride;
}

// Rows are cut into pieces that stay in the first-level cache between the outputs of one piece.
constexpr int64_t kPiece = 1024;

// fn(row, begin, end) on all pieces, in parallel.
template <class Fn>
void for_each_piece(const Threads& threads, int64_t rows, int64_t width, int64_t bytes_per_element, const Fn& fn) {
  const int64_t pieces = (width + kPiece - 1) / kPiece;
  const int64_t piece_bytes = (width < kPiece ? width : kPiece) * bytes_per_element;
  for_each_block(threads, rows * pieces, piece_bytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % pieces * kPiece;
      fn(i / pieces, begin, min_of(begin + kPiece, width));
    }
    finish_streams();
  });
}

template <class T, bool kStream>
void forward(const GateFwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  for_each_piece(threads, p.rows, p.width, 3 * sizeof(T), [&](int64_t row, int64_t begin, int64_t end) {
    const T* HWY_RESTRICT x1 = row_at<const T>(p.x1, row) + begin;
    const T* HWY_RESTRICT x2 = row_at<const T>(p.x2, row) + begin;
    map_row<kStream>(row_at<T>(p.h, row) + begin, end - begin, [&](ptrdiff_t i, auto n) {
      const auto a = load_n(x1 + i, n);
      return hn::Mul(hn::Mul(a, sigmoid<T>(a)), load_n(x2 + i, n));
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
      const auto s = sigmoid<T>(a);
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
