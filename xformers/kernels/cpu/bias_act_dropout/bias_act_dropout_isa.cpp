// dropout(activation(x + bias)) + residual and its gradients, a piece of a row at a time: draw for the piece, then one
// loop over its vectors. Compiled once per instruction set.
#include "xformers/kernels/cpu/base/column_sums-inl.h"
#include "xformers/kernels/cpu/base/pieces-inl.h"
#include "xformers/kernels/cpu/bias_act_dropout/activation-inl.h"
#include "xformers/kernels/cpu/bias_act_dropout/isa_kernels.h"
#include "xformers/kernels/cpu/bias_act_dropout/keep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

static_assert(kPiece % kDrawnColumns == 0);

template <class T>
T* piece_at(const Rows& rows, int64_t row, int64_t begin) {
  return rows.data ? static_cast<T*>(rows.data) + row * rows.stride + begin : nullptr;
}

template <class T>
bool is_large(const BiasActDropoutShape& shape) {
  return shape.rows * shape.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
}

template <class T, Activation kActivation>
void forward(const BiasActDropoutFwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const Tag<C> d;
  const KeepDraws keep(p.shape.dropout);
  const bool stream = is_large<T>(p.shape);
  const int64_t tensors = p.residual.data ? 3 : 2;
  for_each_piece(threads, p.shape.rows, p.shape.width, tensors * sizeof(T),
                 [&](int64_t row, int64_t begin, int64_t end) {
                   const T* x = piece_at<const T>(p.x, row, begin);
                   const T* residual = piece_at<const T>(p.residual, row, begin);
                   const C* HWY_RESTRICT bias = p.bias ? static_cast<const C*>(p.bias) + begin : nullptr;
                   T* const out = piece_at<T>(p.out, row, begin);
                   alignas(64) T buffer[kPiece];
                   T* const piece = stream ? buffer : out;
                   alignas(64) uint16_t draws[kPiece];
                   if (keep.active) fill_draws(keep, static_cast<uint64_t>(row), begin, end - begin, draws);
                   const auto scale = hn::Set(d, static_cast<C>(keep.scale));
                   for_each_vec<C>(end - begin, [&](ptrdiff_t i, auto n) {
                     auto value = load_n(x + i, n);
                     if (bias) value = hn::Add(value, load_n(bias + i, n));
                     value = activate<kActivation, T>(value);
                     if (keep.active) value = drop(hn::Mul(value, scale), draws + i, keep.threshold);
                     if (residual) value = hn::Add(value, load_n(residual + i, n));
                     store_n(value, piece + i, n);
                   });
                   if (stream) stream_bytes(out, buffer, static_cast<size_t>(end - begin) * sizeof(T));
                 });
}

// dx of one piece, which also goes into sums (null: none).
template <class T, Activation kActivation>
HWY_INLINE void backward_piece(const BiasActDropoutBwdParams& p, const KeepDraws& keep, bool stream, int64_t row,
                               int64_t begin, int64_t end, Compute<T>* sums) {
  using C = Compute<T>;
  const Tag<C> d;
  const T* x = piece_at<const T>(p.x, row, begin);
  const T* dout = piece_at<const T>(p.dout, row, begin);
  const C* HWY_RESTRICT bias = p.bias ? static_cast<const C*>(p.bias) + begin : nullptr;
  T* const dx = piece_at<T>(p.dx, row, begin);
  alignas(64) T buffer[kPiece];
  T* const piece = stream || !dx ? buffer : dx;
  alignas(64) uint16_t draws[kPiece];
  if (keep.active) fill_draws(keep, static_cast<uint64_t>(row), begin, end - begin, draws);
  const auto scale = hn::Set(d, static_cast<C>(keep.scale));
  for_each_vec<C>(end - begin, [&](ptrdiff_t i, auto n) {
    auto gradient = load_n(dout + i, n);
    if (keep.active) gradient = drop(hn::Mul(gradient, scale), draws + i, keep.threshold);
    if constexpr (kActivation != Activation::kNone) {
      auto value = load_n(x + i, n);
      if (bias) value = hn::Add(value, load_n(bias + i, n));
      gradient = hn::Mul(gradient, activation_slope<kActivation, T>(value));
    }
    if (sums) store_n(hn::Add(load_n(sums + begin + i, n), gradient), sums + begin + i, n);
    store_n(gradient, piece + i, n);
  });
  if (dx && stream) stream_bytes(dx, buffer, static_cast<size_t>(end - begin) * sizeof(T));
}

template <class T, Activation kActivation>
void backward(const BiasActDropoutBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const KeepDraws keep(p.shape.dropout);
  const bool stream = is_large<T>(p.shape);
  if (!p.dbias) {
    for_each_piece(threads, p.shape.rows, p.shape.width, 3 * sizeof(T), [&](int64_t row, int64_t begin, int64_t end) {
      backward_piece<T, kActivation>(p, keep, stream, row, begin, end, nullptr);
    });
    return;
  }
  C* const results[1] = {static_cast<C*>(p.dbias)};
  sum_columns<C, 1, 1>(threads, p.shape.rows, p.shape.width, results, [&](int64_t row, PartSums<C, 1>& sums, auto) {
    for (int64_t begin = 0; begin < p.shape.width; begin += kPiece) {
      backward_piece<T, kActivation>(p, keep, stream, row, begin, min_of(begin + kPiece, p.shape.width), sums.array(0));
    }
    finish_streams();
  });
}

}  // namespace

void bias_act_dropout_forward(const BiasActDropoutFwdParams& p, const Threads& threads) {
  with_element(p.shape.dtype, [&]<class T>() {
    with_activation(p.shape.activation, [&]<Activation kActivation>() { forward<T, kActivation>(p, threads); });
  });
}

void bias_act_dropout_backward(const BiasActDropoutBwdParams& p, const Threads& threads) {
  with_element(p.shape.dtype, [&]<class T>() {
    with_activation(p.shape.activation, [&]<Activation kActivation>() { backward<T, kActivation>(p, threads); });
  });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
