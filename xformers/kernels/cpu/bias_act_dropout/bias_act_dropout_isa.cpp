// dropout(activation(x + bias)) + residual and its gradients, a piece of a row at a time: draw for the piece, then one
// loop over its vectors. Compiled once per instruction set.
#include "xformers/kernels/cpu/base/column_sums-inl.h"
#include "xformers/kernels/cpu/base/pieces-inl.h"
#include "xformers/kernels/cpu/bias_act_dropout/activation-inl.h"
#include "xformers/kernels/cpu/bias_act_dropout/bias_act_dropout_cpu.h"
#include "xformers/kernels/cpu/bias_act_dropout/keep-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

// Where there is something to draw, pieces are so short that drawing for one goes on while another waits for memory.
constexpr int64_t kDrawnPiece = 256;
static_assert(kDrawnPiece % kDrawnColumns == 0 && kDrawnPiece <= kPiece);
int64_t piece_of(const KeepDraws& keep) { return keep.active ? kDrawnPiece : kPiece; }
constexpr int64_t kDrawsRoom = kDrawnPiece + kDrawnColumns;  // whole vectors are read, from any place in the piece

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
  for_each_piece(
      threads, p.shape.rows, p.shape.width, tensors * sizeof(T),
      [&](int64_t row, int64_t begin, int64_t end) {
        const T* x = piece_at<const T>(p.x, row, begin);
        const T* residual = piece_at<const T>(p.residual, row, begin);
        const C* HWY_RESTRICT bias = p.bias ? static_cast<const C*>(p.bias) + begin : nullptr;
        T* const outs[1] = {piece_at<T>(p.out, row, begin)};
        alignas(64) uint16_t draws[kDrawsRoom];
        if (keep.active) fill_draws(keep, static_cast<uint64_t>(row), begin, end - begin, draws);
        const auto scale = hn::Set(d, static_cast<C>(keep.scale));
        const bool drops = keep.active;
        const uint16_t lowest_kept = keep.lowest_kept;
        map_rows(stream, outs, end - begin, [&](ptrdiff_t i, auto n, Vec<C>* results) XFORMERS_INLINED {
          prefetch_behind(x + i);
          if (residual) prefetch_behind(residual + i);
          auto value = load_n(x + i, n);
          if (bias) value = hn::Add(value, load_n(bias + i, n));
          value = activate<kActivation, T>(value);
          if (drops) value = drop(hn::Mul(value, scale), draws + i, lowest_kept);
          if (residual) value = hn::Add(value, load_n(residual + i, n));
          results[0] = value;
        });
      },
      piece_of(keep));
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
  alignas(64) T unwanted[kPiece];
  T* const dx = piece_at<T>(p.dx, row, begin);
  T* const outs[1] = {dx ? dx : unwanted};
  alignas(64) uint16_t draws[kDrawsRoom];
  if (keep.active) fill_draws(keep, static_cast<uint64_t>(row), begin, end - begin, draws);
  const auto scale = hn::Set(d, static_cast<C>(keep.scale));
  const bool drops = keep.active;
  const uint16_t lowest_kept = keep.lowest_kept;
  map_rows(stream && dx, outs, end - begin, [&](ptrdiff_t i, auto n, Vec<C>* results) XFORMERS_INLINED {
    prefetch_behind(dout + i);
    auto gradient = load_n(dout + i, n);
    if (drops) gradient = drop(hn::Mul(gradient, scale), draws + i, lowest_kept);
    if constexpr (kActivation != Activation::kNone) {
      prefetch_behind(x + i);
      auto value = load_n(x + i, n);
      if (bias) value = hn::Add(value, load_n(bias + i, n));
      gradient = hn::Mul(gradient, activation_slope<kActivation, T>(value));
    }
    if (sums) store_n(hn::Add(load_n(sums + begin + i, n), gradient), sums + begin + i, n);
    results[0] = gradient;
  });
}

template <class T, Activation kActivation>
void backward(const BiasActDropoutBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const KeepDraws keep(p.shape.dropout);
  const bool stream = is_large<T>(p.shape);
  if (!p.dbias) {
    for_each_piece(
        threads, p.shape.rows, p.shape.width, 3 * sizeof(T),
        [&](int64_t row, int64_t begin, int64_t end) {
          backward_piece<T, kActivation>(p, keep, stream, row, begin, end, nullptr);
        },
        piece_of(keep));
    return;
  }
  const int64_t piece = piece_of(keep);
  C* const results[1] = {static_cast<C*>(p.dbias)};
  sum_columns<C, 1, 1>(threads, p.shape.rows, p.shape.width, results, [&](int64_t row, PartSums<C, 1>& sums, auto) {
    for (int64_t begin = 0; begin < p.shape.width; begin += piece) {
      backward_piece<T, kActivation>(p, keep, stream, row, begin, min_of(begin + piece, p.shape.width), sums.array(0));
    }
  });
}

}  // namespace

void bias_act_dropout_forward(const BiasActDropoutFwdParams& p, const Threads& threads) {
  with_element(p.shape.dtype, [&]<class T>(T) {
    with_activation(p.shape.activation, [&]<Activation kActivation>() { forward<T, kActivation>(p, threads); });
  });
}

void bias_act_dropout_backward(const BiasActDropoutBwdParams& p, const Threads& threads) {
  with_element(p.shape.dtype, [&]<class T>(T) {
    with_activation(p.shape.activation, [&]<Activation kActivation>() { backward<T, kActivation>(p, threads); });
  });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
