// Linear attention on CPU tensors.
#include "xformers/kernels/cpu/linear_attention/linear_attention_cpu.h"

#include "xformers/ops/attention/heads.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/linear_attention/linear_attention_op.h"

namespace xformers::ops {
namespace {

// [batch, seqlen, heads, dim], each head a group of one.
HeadsTensor heads_of(const at::Tensor& t) { return to_heads(t, HeadDims::kGroups); }

// A call's inputs as kernels read them, and what keeps them there.
struct LinearAttentionInput {
  explicit LinearAttentionInput(const LinearAttention& args)
      : q(with_unit_last_stride(args.q)),
        k(with_unit_last_stride(args.k)),
        v(with_unit_last_stride(args.v)),
        omega(in_dtype(args.omega, compute_dtype(q))),
        log_decay(in_dtype(args.log_decay, compute_dtype(q))),
        state(in_dtype(args.state, compute_dtype(q))),
        cu_seqlens(in_dtype(args.cu_seqlens, at::kInt)) {
    shape = {.dtype = to_dtype(q.scalar_type()),
             .map = !args.omega   ? FeatureMap::kGiven
                    : args.paired ? FeatureMap::kExpPaired
                                  : FeatureMap::kExp,
             .causal = args.causal,
             .normalize = args.normalize,
             .num_sequences = args.cu_seqlens ? cu_seqlens.size(0) - 1 : q.size(0),
             .num_heads = q.size(2),
             .seqlen_q = q.size(1),
             .seqlen_k = k.size(1),
             .cu_seqlens = args.cu_seqlens ? cu_seqlens.const_data_ptr<int32_t>() : nullptr,
             .head_dim = q.size(3),
             .head_dim_v = v.size(3),
             .num_features = args.features().expect_int()};
    in = {.q = heads_of(q),
          .k = heads_of(k),
          .v = heads_of(v),
          .omega = data_or_null(omega),
          .log_decay = data_or_null(log_decay),
          .state = data_or_null(state)};
  }

  at::Tensor q, k, v, omega, log_decay, state, cu_seqlens;
  LinearAttentionShape shape;
  LinearAttentionInputs in;
};

void* data_if(bool wanted, const at::Tensor& t) { return wanted ? t.mutable_data_ptr() : nullptr; }

LinearAttention::Result linear_attention_cpu(const LinearAttention& args) {
  args.check();
  const LinearAttentionInput input(args);
  auto result = args.empty();
  const auto& [out, denominator, final_state] = result;
  cpu::linear_attention_forward({.shape = input.shape,
                                 .in = input.in,
                                 .out = heads_of(out),
                                 .denominator = data_if(args.normalize, denominator),
                                 .final_state = data_if(args.return_state, final_state)},
                                torch_threads());
  return result;
}

LinearAttentionBackward::Result linear_attention_backward_cpu(const LinearAttentionBackward& args) {
  args.check();
  const LinearAttentionInput input(args);
  auto [dq, dk, dv, dlog_decay, dstate] = args.empty();
  const at::Tensor grad_out = with_unit_last_stride(args.grad_out), out = with_unit_last_stride(args.out);
  const at::Tensor denominator = args.denominator.contiguous(),
                   grad_state = in_dtype(args.grad_state, compute_dtype(args.q)),
                   exact_decay = args.log_decay ? dlog_decay.to(compute_dtype(args.q)) : at::Tensor();
  cpu::linear_attention_backward({.shape = input.shape,
                                  .in = input.in,
                                  .out = heads_of(out),
                                  .dout = heads_of(grad_out),
                                  .denominator = args.normalize ? denominator.const_data_ptr() : nullptr,
                                  .dfinal_state = data_or_null(grad_state),
                                  .dq = heads_of(dq),
                                  .dk = heads_of(dk),
                                  .dv = heads_of(dv),
                                  .dlog_decay = args.log_decay ? exact_decay.mutable_data_ptr() : nullptr,
                                  .dstate = data_if(args.state.has_value(), dstate)},
                                 torch_threads());
  if (args.log_decay) dlog_decay = exact_decay.to(args.log_decay->scalar_type());
  return {dq, dk, dv, dlog_decay, dstate};
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  using namespace xformers::ops;
  implement<linear_attention_cpu>(m);
  implement<linear_attention_backward_cpu>(m);
}
