// Linear attention by its formula, in chunks, of matrix products: on devices without a kernel. Features exist of one
// chunk at a time, as in the kernels.
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "xformers/ops/linear_attention/linear_attention_op.h"

namespace xformers::ops {
namespace {

constexpr int64_t kFormulaChunk = 128;  // tokens whose features exist at a time

// A tensor [batch, seqlen, heads, dim], read and written in chunks of [batch, heads, tokens, dim], in fp32 (fp64).
class Tokens {
 public:
  explicit Tokens(const at::Tensor& t) : t_(t.transpose(1, 2)) {}
  int64_t seqlen() const { return t_.size(2); }
  int64_t dim() const { return t_.size(3); }
  at::Tensor chunk(int64_t begin) const {
    return t_.narrow(2, begin, std::min(kFormulaChunk, seqlen() - begin)).to(compute_dtype(t_));
  }
  void write(int64_t begin, const at::Tensor& values) const { t_.narrow(2, begin, values.size(2)).copy_(values); }

 private:
  at::Tensor t_;
};

template <class Fn>
void for_each_chunk(int64_t seqlen, Fn fn) {
  for (int64_t begin = 0; begin < seqlen; begin += kFormulaChunk) fn(begin);
}
template <class Fn>
void for_each_chunk_backwards(int64_t seqlen, Fn fn) {
  const int64_t chunks = (seqlen + kFormulaChunk - 1) / kFormulaChunk;
  for (int64_t begin = (chunks - 1) * kFormulaChunk; begin >= 0; begin -= kFormulaChunk) fn(begin);
}

at::Tensor transposed_product(const at::Tensor& a, const at::Tensor& b) { return at::matmul(a.transpose(-1, -2), b); }
at::Tensor product_transposed(const at::Tensor& a, const at::Tensor& b) { return at::matmul(a, b.transpose(-1, -2)); }

// The features of queries and keys, and the gradients through them.
class ChunkFeatures {
 public:
  explicit ChunkFeatures(const LinearAttention& args) : args_(args), q_(args.q), k_(args.k), v_(args.v) {
    if (!args.omega) return;
    omega_ = args.omega->to(compute_dtype(args.q));
    scale_ = std::pow(static_cast<double>(q_.dim()), -0.25);
    log_norm_ = 0.5 * std::log(static_cast<double>(args.features().expect_int()));
    // A later key must not change what an earlier query sees, not even its rounding.
    if (args.causal || !args.normalize || k_.seqlen() == 0) return;
    for_each_chunk(k_.seqlen(), [&](int64_t begin) {
      const at::Tensor largest = exponents(k_, begin).amax({2, 3}, /*keepdim=*/true);
      shift_ = shift_.defined() ? at::maximum(shift_, largest) : largest;
    });
    if (args.state) shift_ = shift_.clamp_min(0);
  }

  at::Tensor queries(int64_t begin) const {
    if (!args_.omega) return q_.chunk(begin);
    if (!args_.normalize) return exponents(q_, begin).exp();
    const at::Tensor x = projected(q_.chunk(begin) * scale_);
    return (x - x.amax({3}, /*keepdim=*/true)).exp();
  }
  at::Tensor keys(int64_t begin) const {
    if (!args_.omega) return k_.chunk(begin);
    const at::Tensor x = exponents(k_, begin);
    return (shift_.defined() ? x - shift_ : x).exp();
  }
  // Normalised, values and a column of ones, which sums the denominator.
  at::Tensor values(int64_t begin) const {
    const at::Tensor v = v_.chunk(begin);
    if (!args_.normalize) return v;
    return at::cat({v, at::ones({v.size(0), v.size(1), v.size(2), 1}, v.options())}, 3);
  }

  // A state as users have it in the units of these keys (sign -1), and back (1).
  at::Tensor rescaled(const at::Tensor& state, int sign) const {
    return shift_.defined() ? state * (sign * shift_).exp() : state;
  }

  // From the gradient of the features to that of q, or of k.
  at::Tensor of_queries(int64_t begin, const at::Tensor& features, const at::Tensor& grad) const {
    return through_map(q_, begin, features, grad, !args_.normalize);
  }
  at::Tensor of_keys(int64_t begin, const at::Tensor& features, const at::Tensor& grad) const {
    return through_map(k_, begin, features, grad, true);
  }

 private:
  at::Tensor projected(const at::Tensor& x) const {
    const at::Tensor p = at::matmul(x, omega_);
    return args_.paired ? at::cat({p, -p}, 3) : p;
  }
  at::Tensor exponents(const Tokens& tokens, int64_t begin) const {
    const at::Tensor x = tokens.chunk(begin) * scale_;
    return projected(x) - 0.5 * x.square().sum(3, /*keepdim=*/true) - log_norm_;
  }
  at::Tensor through_map(const Tokens& tokens, int64_t begin, const at::Tensor& features, const at::Tensor& grad,
                         bool with_squares) const {
    if (!args_.omega) return grad;
    const at::Tensor weighted = features * grad;
    const int64_t columns = omega_.size(1);
    const at::Tensor along =
        args_.paired ? weighted.narrow(3, 0, columns) - weighted.narrow(3, columns, columns) : weighted;
    at::Tensor dx = product_transposed(along, omega_);
    if (with_squares) dx = dx - tokens.chunk(begin) * scale_ * weighted.sum(3, /*keepdim=*/true);
    return dx * scale_;
  }

  const LinearAttention& args_;
  at::Tensor omega_, shift_;
  Tokens q_, k_, v_;
  double scale_ = 1, log_norm_ = 0;
};

// exp of sums of log-decays within a chunk; ones where there is no decay. No sum is a difference of longer ones.
struct ChunkDecay {
  ChunkDecay(const LinearAttention& args, int64_t begin) {
    if (!args.log_decay) return;
    const at::Tensor g = Tokens(args.log_decay->to(compute_dtype(args.q)).unsqueeze(3)).chunk(begin);  // [.., n, 1]
    const at::Tensor t = at::arange(g.size(2), g.options());
    const at::Tensor sums = g.masked_fill(t.unsqueeze(1) <= t, 0).cumsum(2);  // [i, j]: over j < t <= i
    between = sums.exp();
    in = g.cumsum(2).exp();
    out = between.narrow(2, g.size(2) - 1, 1).transpose(2, 3);
    all = in.narrow(2, g.size(2) - 1, 1);
  }
  static at::Tensor times(const at::Tensor& x, const at::Tensor& factor) { return factor.defined() ? x * factor : x; }
  at::Tensor between, in, out, all;  // [.., n, n], [.., n, 1], [.., n, 1], [.., 1, 1]
};

at::Tensor first_state(const LinearAttention& args, const ChunkFeatures& features) {
  if (args.state) return features.rescaled(*args.state, -1);
  return at::zeros_symint(args.state_sizes(), args.q.options().dtype(compute_dtype(args.q)));
}

at::Tensor state_of_all_keys(const LinearAttention& args, const ChunkFeatures& features) {
  at::Tensor state = first_state(args, features);
  for_each_chunk(args.k.size(1), [&](int64_t begin) {
    state = state + transposed_product(features.keys(begin), features.values(begin));
  });
  return state;
}

void forward_of_one(const LinearAttention& args, const LinearAttention::Result& result) {
  const ChunkFeatures features(args);
  const Tokens out(std::get<0>(result));
  const int64_t width = out.dim();
  const auto finish = [&](int64_t begin, const at::Tensor& sums) {
    if (!args.normalize) return out.write(begin, sums);
    const at::Tensor below = sums.narrow(3, width, 1);
    out.write(begin, at::where(below == 0, 0, sums.narrow(3, 0, width) / below));
    Tokens(std::get<1>(result).unsqueeze(3)).write(begin, below);
  };
  at::Tensor state;
  if (args.causal) {
    state = first_state(args, features);
    for_each_chunk(out.seqlen(), [&](int64_t begin) {
      const ChunkDecay decay(args, begin);
      const at::Tensor q = features.queries(begin), k = features.keys(begin), v = features.values(begin);
      const at::Tensor scores = decay.times(product_transposed(q, k), decay.between).tril();
      finish(begin, at::matmul(scores, v) + decay.times(at::matmul(q, state), decay.in));
      state = decay.times(state, decay.all) + transposed_product(k, decay.times(v, decay.out));
    });
  } else {
    state = state_of_all_keys(args, features);
    for_each_chunk(out.seqlen(), [&](int64_t begin) { finish(begin, at::matmul(features.queries(begin), state)); });
  }
  if (args.return_state) std::get<2>(result).copy_(features.rescaled(state, 1));
}

void backward_of_one(const LinearAttentionBackward& args, const LinearAttentionBackward::Result& result) {
  const ChunkFeatures features(args);
  const Tokens grad_out(args.grad_out), out(args.out);
  const auto& [dq_result, dk_result, dv_result, dlog_decay, dstate] = result;
  const Tokens dq(dq_result), dk(dk_result), dv(dv_result);
  const int64_t width = out.dim();
  // The gradients of numerator and denominator, side by side as values and ones are.
  const auto grad_sums = [&](int64_t begin) {
    const at::Tensor grad = grad_out.chunk(begin);
    if (!args.normalize) return grad;
    const at::Tensor below = Tokens(args.denominator.unsqueeze(3)).chunk(begin);
    const at::Tensor both = at::cat({grad, -(grad * out.chunk(begin)).sum(3, /*keepdim=*/true)}, 3);
    return at::where(below == 0, 0, both / below);
  };
  at::Tensor reach;  // [batch, heads, seqlen, 1]: sum of f df, of queries less of keys
  if (args.log_decay) {
    reach = at::zeros({args.q.size(0), args.q.size(2), args.q.size(1), 1}, args.q.options().dtype(at::kDouble));
  }
  const auto add_reach = [&](int64_t begin, const at::Tensor& f, const at::Tensor& df, int sign) {
    if (reach.defined()) reach.narrow(2, begin, f.size(2)).add_((f * df).sum(3, /*keepdim=*/true), sign);
  };
  at::Tensor state = args.causal ? first_state(args, features) : state_of_all_keys(args, features);
  at::Tensor later = args.grad_state ? features.rescaled(*args.grad_state, 1) : at::zeros_like(state);
  for_each_chunk(out.seqlen(), [&](int64_t begin) {
    const at::Tensor grad = grad_sums(begin), q = features.queries(begin);
    at::Tensor df = product_transposed(grad, state);
    if (args.causal) {
      const ChunkDecay decay(args, begin);
      const at::Tensor k = features.keys(begin), v = features.values(begin);
      df = decay.times(df, decay.in) + at::matmul(decay.times(product_transposed(grad, v), decay.between).tril(), k);
      state = decay.times(state, decay.all) + transposed_product(k, decay.times(v, decay.out));
      add_reach(begin, q, df, 1);
    } else {
      later = later + transposed_product(q, grad);
    }
    dq.write(begin, features.of_queries(begin, q, df));
  });
  const at::Tensor from_state = (state * later).sum({2, 3}, /*keepdim=*/true);
  for_each_chunk_backwards(dk.seqlen(), [&](int64_t begin) {
    const at::Tensor k = features.keys(begin), v = features.values(begin);
    at::Tensor df = product_transposed(v, later), grad_values = at::matmul(k, later);
    if (args.causal) {
      const ChunkDecay decay(args, begin);
      const at::Tensor q = features.queries(begin), grad = grad_sums(begin);
      const at::Tensor dscores = decay.times(product_transposed(grad, v), decay.between).tril();
      const at::Tensor scores = decay.times(product_transposed(q, k), decay.between).tril();
      df = decay.times(df, decay.out) + transposed_product(dscores, q);
      grad_values = decay.times(grad_values, decay.out) + transposed_product(scores, grad);
      later = decay.times(later, decay.all) + transposed_product(q, decay.times(grad, decay.in));
      add_reach(begin, k, df, -1);
    }
    dk.write(begin, features.of_keys(begin, k, df));
    dv.write(begin, grad_values.narrow(3, 0, width));
  });
  if (reach.defined()) {
    const at::Tensor sums =
        reach.flip({2}).cumsum(2).flip({2}) + (args.grad_state ? from_state : at::zeros_like(from_state));
    dlog_decay.copy_(sums.squeeze(3).transpose(1, 2));
  }
  if (args.state) dstate.copy_(features.rescaled(later, -1));
}

// fn(first token, tokens, s) of every packed sequence.
template <class Fn>
void for_each_sequence(const at::Tensor& cu_seqlens, Fn fn) {
  const at::Tensor offsets = cu_seqlens.cpu();
  const auto* const at = offsets.const_data_ptr<int32_t>();
  for (int64_t s = 0; s + 1 < offsets.size(0); ++s) fn(at[s], at[s + 1] - at[s], s);
}

OptionalTensor part_of(const OptionalTensor& t, int64_t dim, int64_t begin, int64_t count) {
  return t && t->dim() > dim ? OptionalTensor(t->narrow(dim, begin, count)) : t;
}

// The arguments of one sequence.
template <class Args>
Args one_of(Args args, int64_t begin, int64_t count, int64_t s) {
  for (at::Tensor* t : {&args.q, &args.k, &args.v}) *t = t->narrow(1, begin, count);
  args.log_decay = part_of(args.log_decay, 1, begin, count);
  args.state = part_of(args.state, 0, s, 1);
  args.cu_seqlens = std::nullopt;
  if constexpr (std::is_same_v<Args, LinearAttentionBackward>) {
    for (at::Tensor* t : {&args.grad_out, &args.out}) *t = t->narrow(1, begin, count);
    if (args.normalize) args.denominator = args.denominator.narrow(1, begin, count);
    args.grad_state = part_of(args.grad_state, 0, s, 1);
  }
  return args;
}

LinearAttention::Result forward_anywhere(const LinearAttention& args) {
  args.check();
  auto result = args.empty();
  if (!args.cu_seqlens) {
    forward_of_one(args, result);
    return result;
  }
  const auto& [out, denominator, final_state] = result;
  for_each_sequence(*args.cu_seqlens, [&, &out = out, &denominator = denominator, &final_state = final_state](
                                          int64_t begin, int64_t count, int64_t s) {
    forward_of_one(one_of(args, begin, count, s),
                   {out.narrow(1, begin, count), args.normalize ? denominator.narrow(1, begin, count) : denominator,
                    args.return_state ? final_state.narrow(0, s, 1) : final_state});
  });
  return result;
}

LinearAttentionBackward::Result backward_anywhere(const LinearAttentionBackward& args) {
  args.check();
  auto result = args.empty();
  if (!args.cu_seqlens) {
    backward_of_one(args, result);
    return result;
  }
  const auto& [dq, dk, dv, dlog_decay, dstate] = result;
  for_each_sequence(*args.cu_seqlens, [&, &dq = dq, &dk = dk, &dv = dv, &dlog_decay = dlog_decay, &dstate = dstate](
                                          int64_t begin, int64_t count, int64_t s) {
    const auto rows = [&](const at::Tensor& t) { return t.narrow(1, begin, count); };
    backward_of_one(one_of(args, begin, count, s),
                    {rows(dq), rows(dk), rows(dv), args.log_decay ? rows(dlog_decay) : dlog_decay,
                     args.state ? dstate.narrow(0, s, 1) : dstate});
  });
  return result;
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<forward_anywhere>(m);
  implement<backward_anywhere>(m);
}
