#include "xformers/ops/context_parallel/attend.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <limits>

#include "xformers/ops/merge_attentions/merge_attentions_op.h"

namespace xformers::ops {
namespace {

using parallel::KeyStep;
using parallel::Piece;

// Keys as rows, and back.
at::Tensor as_rows(const at::Tensor& x) { return x.transpose(0, 1).contiguous(); }

// The keys and values of one step after another. Those of the next are on their way while these are used: two chunks
// are here.
class KeyStream {
 public:
  KeyStream(const Carrier& carrier, const TeamCall& call)
      : carrier_(carrier), k_(as_rows(call.key)), v_(as_rows(call.value)) {
    start();
  }

  std::pair<at::Tensor, at::Tensor> next() {  // [batch, keys, ...]
    const KeyStep& step = carrier_.team().steps[step_++];
    const at::Tensor k = carrier_.finish_keys(kWhat, step, coming_k_), v = carrier_.finish_keys(kWhat, step, coming_v_);
    start();
    return {k.transpose(0, 1), v.transpose(0, 1)};
  }

 private:
  static constexpr const char* kWhat = "sending keys and values";

  void start() {
    coming_k_ = coming_v_ = {};
    if (step_ == carrier_.team().steps.size()) return;
    const KeyStep& step = carrier_.team().steps[step_];
    coming_k_ = carrier_.start_keys(kWhat, step, k_);
    coming_v_ = carrier_.start_keys(kWhat, step, v_);
  }

  const Carrier& carrier_;
  const at::Tensor k_, v_;
  Transit coming_k_, coming_v_;
  size_t step_ = 0;
};

AttentionArgs call_of(const Piece& piece, const TeamCall& call, const at::Tensor& k, const at::Tensor& v) {
  AttentionArgs args;
  args.query = call.query.narrow(1, piece.rows.begin, piece.rows.size());
  args.key = with_heads_of(call.query, k.narrow(1, piece.keys.begin, piece.keys.size()));
  args.value = with_heads_of(call.query, v.narrow(1, piece.keys.begin, piece.keys.size()));
  args.window_left = piece.window_left;
  args.window_right = piece.window_right;
  args.bottom_right = true;
  args.scale = call.scale;
  args.need_lse = true;
  return args;
}

// Results of pieces in the query's dtype, none of which share a row.
class WholeRows {
 public:
  WholeRows(const TeamCall& call, AttentionResult empty) : dtype_(call.query.scalar_type()), all_(std::move(empty)) {}
  at::ScalarType out_dtype() const { return dtype_; }
  void add(const Piece& piece, AttentionResult part) {
    if (piece.rows.size() == std::get<0>(all_).size(1)) {
      all_ = std::move(part);
      return;
    }
    std::get<0>(all_).narrow(1, piece.rows.begin, piece.rows.size()).copy_(std::get<0>(part));
    std::get<1>(all_).narrow(-1, piece.rows.begin, piece.rows.size()).copy_(std::get<1>(part));
    std::get<2>(all_).narrow(-1, piece.rows.begin, piece.rows.size()).copy_(std::get<2>(part));
  }
  AttentionResult result() { return std::move(all_); }

 private:
  at::ScalarType dtype_;
  AttentionResult all_;
};

// Partial results, merged as they come; the log-sum-exp in fp64, so that its lower part is known at the end.
class MergedRows {
 public:
  MergedRows(const TeamCall& call, const AttentionResult& empty) : dtype_(call.query.scalar_type()) {
    const auto& [out, lse, low] = empty;
    out_ = at::zeros(out.sizes(), out.options().dtype(compute_dtype(call.query)));
    lse_ = at::full(lse.sizes(), -std::numeric_limits<double>::infinity(), lse.options().dtype(at::kDouble));
  }
  at::ScalarType out_dtype() const { return out_.scalar_type(); }
  void add(const Piece& piece, const AttentionResult& part) {
    const at::Tensor out = out_.narrow(1, piece.rows.begin, piece.rows.size());
    const at::Tensor lse = lse_.narrow(-1, piece.rows.begin, piece.rows.size());
    const std::array<at::Tensor, 2> outs{out, std::get<0>(part)};
    const std::array<at::Tensor, 2> lses{lse, std::get<1>(part).to(at::kDouble).add(std::get<2>(part))};
    MergeAttentions merge;
    merge.attn = outs;
    merge.lse = lses;
    const auto [merged, merged_lse] = call(merge);
    out.copy_(merged);
    lse.copy_(merged_lse);
  }
  AttentionResult result() {
    const at::Tensor lse = lse_.to(out_.scalar_type());
    return {out_.to(dtype_), lse, lse_.sub(lse).to(out_.scalar_type())};
  }

 private:
  at::ScalarType dtype_;
  at::Tensor out_, lse_;
};

AttentionResult empty_results(const TeamCall& call) {
  AttentionArgs args;
  args.query = call.query;
  args.key = with_heads_of(call.query, call.key);
  args.value = with_heads_of(call.query, call.value);
  args.need_lse = true;
  return args.empty();
}

template <class Rows>
AttentionResult attend_into(const Carrier& carrier, const TeamCall& call_of_team) {
  Rows rows(call_of_team, empty_results(call_of_team));
  KeyStream keys(carrier, call_of_team);
  for (const KeyStep& step : carrier.team().steps) {
    const auto [k, v] = keys.next();
    for (const Piece& piece : step.pieces) {
      AttentionArgs args = call_of(piece, call_of_team, k, v);
      args.out_dtype = rows.out_dtype();
      rows.add(piece, call(args));
    }
  }
  return rows.result();
}

// Gradients of keys that are here, on their way to their owners.
struct Returning {
  const KeyStep* step = nullptr;
  Transit dk, dv;
};

}  // namespace

at::Tensor with_heads_of(const at::Tensor& query, const at::Tensor& key) {
  if (query.dim() != 5 || key.dim() != 5 || key.sym_size(3) != 1) return key;
  std::vector<c10::SymInt> sizes = key.sym_sizes().vec();
  sizes[3] = query.sym_size(3);
  return key.expand_symint(sizes);
}

AttentionResult attend(const Carrier& carrier, const TeamCall& call) {
  return carrier.team().merges ? attend_into<MergedRows>(carrier, call) : attend_into<WholeRows>(carrier, call);
}

// On CPUs gradients of pieces are computed in the dtype of their sums, so that they are rounded once; GPUs round those
// of each piece, since their kernels for wide elements take several times as long.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(const Carrier& carrier, const TeamGradCall& args) {
  constexpr const char* kWhat = "adding up the gradients of keys and values";
  const at::ScalarType sum_type = compute_dtype(args.query), dtype = args.query.scalar_type();
  const auto widened = [&](const at::Tensor& t) { return t.is_cpu() ? t.to(sum_type) : t; };
  const auto rows_of_zeros = [&](const at::Tensor& like) {  // [rows, batch, ...]
    return at::zeros(like.transpose(0, 1).sizes(), like.options().dtype(sum_type));
  };
  const auto add = [&](const at::Tensor& sum, at::Tensor grad) {
    if (grad.dim() == 5 && sum.size(3) == 1 && grad.size(3) > 1) grad = grad.sum(3, /*keepdim=*/true, sum_type);
    sum.add_(grad);
  };
  const at::Tensor dq =
      at::zeros(args.query.sizes(), args.query.options().dtype(carrier.team().merges ? sum_type : dtype));
  at::Tensor dk_sum = rows_of_zeros(args.key), dv_sum = rows_of_zeros(args.value);
  KeyStream keys(carrier, args);
  Returning returning;
  const auto finish = [&] {
    if (returning.step == nullptr) return;
    carrier.finish_gradients(kWhat, *returning.step, returning.dk, dk_sum);
    carrier.finish_gradients(kWhat, *returning.step, returning.dv, dv_sum);
  };
  for (const KeyStep& step : carrier.team().steps) {
    auto [k, v] = keys.next();
    const at::Tensor dk = rows_of_zeros(k), dv = rows_of_zeros(v);
    k = widened(k), v = widened(v);
    for (const Piece& piece : step.pieces) {
      const int64_t row = piece.rows.begin, rows = piece.rows.size(), first = piece.keys.begin,
                    size = piece.keys.size();
      AttentionGradArgs grad;
      static_cast<AttentionArgs&>(grad) = call_of(piece, args, k, v);
      grad.query = widened(grad.query);
      grad.grad_out = widened(args.grad_out.narrow(1, row, rows));
      grad.out = widened(args.out.narrow(1, row, rows));
      grad.lse = args.lse.narrow(-1, row, rows);
      grad.lse_low = args.lse_low.narrow(-1, row, rows);
      if (args.grad_lse) grad.grad_lse = args.grad_lse->narrow(-1, row, rows);
      const AttentionGradients gradients = call(grad);
      dq.narrow(1, row, rows).add_(std::get<0>(gradients));
      add(dk.transpose(0, 1).narrow(1, first, size), std::get<1>(gradients));
      add(dv.transpose(0, 1).narrow(1, first, size), std::get<2>(gradients));
    }
    finish();
    returning = {&step, carrier.start_gradients(kWhat, step, dk), carrier.start_gradients(kWhat, step, dv)};
  }
  finish();
  return {dq.to(dtype), dk_sum.transpose(0, 1), dv_sum.transpose(0, 1)};
}

}  // namespace xformers::ops
