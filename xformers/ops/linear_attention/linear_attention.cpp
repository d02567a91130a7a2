// Schemas, the public function and checks.
#include "xformers/ops/linear_attention/linear_attention.h"

#include "xformers/ops/linear_attention/linear_attention_op.h"

namespace xformers::ops {

c10::SymDimVector LinearAttention::state_sizes() const {
  const c10::SymInt sequences = cu_seqlens ? cu_seqlens->sym_size(0) - 1 : q.sym_size(0);
  return {sequences, q.sym_size(2), features(), v.sym_size(3) + (normalize ? 1 : 0)};
}

void LinearAttention::check() const {
  const Check check(kName);
  check.floating("q", q);
  for (const auto& [name, t] : {std::pair{"q", &q}, std::pair{"k", &k}, std::pair{"v", &v}}) {
    check.dims(name, *t, 4, "[batch, seqlen, heads, head_dim]");
    check.same_device(name, *t, q, "q");
    check.same_dtype(name, *t, q, "q");
    check.equal(name, t->sym_size(0), q.sym_size(0), "queries, keys and values are those of the same batch");
    check.equal(name, t->sym_size(2), q.sym_size(2), "all three have the same heads; expand() keys that heads share");
  }
  check.equal("k.head_dim", k.sym_size(3), q.sym_size(3), "only values may have their own head_dim");
  check.equal("v.seqlen", v.sym_size(1), k.sym_size(1), "every key has one value");
  if (causal || cu_seqlens) check.equal("k.seqlen", k.sym_size(1), q.sym_size(1), "query i stands at key i");
  if (q.sym_size(3) == 0) check.fail("q", describe(q), "a head_dim of at least 1", "give it features");
  if (omega) {
    check.floating("omega", *omega);
    check.dims("omega", *omega, 2, "[head_dim, features], or half as many features where paired");
    check.same_device("omega", *omega, q, "q");
    check.equal("omega.head_dim", omega->sym_size(0), q.sym_size(3), "draw omega for this head_dim");
    if (omega->sym_size(1) == 0) check.fail("omega", describe(*omega), "at least one column", "draw some");
  } else if (paired) {
    check.fail("paired", "True without omega", "False where q and k are features", "pass omega, or leave it out");
  }
  if (log_decay) {
    if (!causal) check.fail("log_decay", "given for all keys", "None where not causal", "set causal");
    check.floating("log_decay", *log_decay);
    check.same_device("log_decay", *log_decay, q, "q");
    check.shape("log_decay", *log_decay, {q.sym_size(0), q.sym_size(1), q.sym_size(2)},
                "one number per token and head");
  }
  if (cu_seqlens) {
    check.dims("cu_seqlens", *cu_seqlens, 1, "[sequences + 1]");
    check.same_device("cu_seqlens", *cu_seqlens, q, "q");
    check.equal("batch", q.sym_size(0), 1, "packed sequences lie one behind the other in one row");
    if (cu_seqlens->scalar_type() != at::kInt || cu_seqlens->sym_size(0) == 0) {
      check.fail("cu_seqlens", describe(*cu_seqlens), "int32, at least [1]",
                 "pass the offsets from 0 to the last token");
    }
  }
  if (state) {
    check.same_device("state", *state, q, "q");
    check.shape("state", *state, state_sizes(),
                "it is [sequences, heads, features, head_dim_v], normalised with one column more");
    if (state->scalar_type() != compute_dtype(q)) {
      check.fail("state", describe(*state), describe_dtype(compute_dtype(q)), "pass it as a call has returned it");
    }
  }
}

c10::SymDimVector LinearAttention::row_sizes() const { return {q.sym_size(0), q.sym_size(1), q.sym_size(2)}; }

c10::SymDimVector LinearAttention::out_sizes() const {
  return {q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)};
}

LinearAttention::Result LinearAttention::empty() const {
  const auto statistics = q.options().dtype(compute_dtype(q));
  return {empty_result(out_sizes(), q.options()), empty_result(row_sizes(), statistics, normalize),
          empty_result(state_sizes(), statistics, return_state)};
}

void LinearAttentionBackward::check() const {
  LinearAttention::check();
  const Check check(kName);
  for (const auto& [name, t] : {std::pair{"grad_out", &grad_out}, std::pair{"out", &out}}) {
    check.shape(name, *t, out_sizes(), "it is what forward has returned, or its gradient");
    check.same_dtype(name, *t, q, "q");
  }
  if (normalize) check.shape("denominator", denominator, row_sizes(), "pass what forward has returned");
  if (grad_state) check.shape("grad_state", *grad_state, state_sizes(), "it has the shape of final_state");
}

LinearAttentionBackward::Result LinearAttentionBackward::empty() const {
  const auto none = [&] { return empty_result(q, false); };
  return {empty_result(q), empty_result(k), empty_result(v), log_decay ? empty_result(*log_decay) : none(),
          state ? empty_result(*state) : none()};
}

LinearAttentionResult linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const LinearAttentionOptions& options) {
  auto [out, denominator, state] =
      call(LinearAttention{q, k, v, options.omega, options.log_decay, options.state, options.cu_seqlens, options.paired,
                           options.causal, options.normalize, options.return_state});
  return {out, state};
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<LinearAttention, LinearAttentionBackward>(m);
}
