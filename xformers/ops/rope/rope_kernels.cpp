// The rotary operators on CPU tensors, without data (meta), and in autograd.
#include <torch/library.h>

#include "xformers/kernels/cpu/rope/rope_cpu.h"
#include "xformers/ops/common/gradient_node.h"
#include "xformers/ops/common/threads.h"
#include "xformers/ops/rope/rope_run.h"

namespace xformers::ops {
namespace {

void run_cpu(const RopeTensors& t, const RopeSettings& settings, const at::Tensor& out_q) {
  run_rope_padded(t, settings, out_q, /*in_place=*/false,
                  [](const RopePaddedParams& params) { cpu::rope_padded(params, torch_threads()); });
}

void no_run(const RopeTensors&, const RopeSettings&, const at::Tensor&) {}

// ---- autograd: caches are written in place, so there is no gradient to give ----
void refuse_gradients(std::initializer_list<at::Tensor> inputs) {
  if (!at::GradMode::is_enabled()) return;
  for (const at::Tensor& input : inputs) {
    if (input.requires_grad()) {
      throw Error("rope_padded: Gradients not supported.  Fix: call it under torch.no_grad(), or detach() the inputs.");
    }
  }
}

at::Tensor rope_padded_autograd(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv,
                                const at::Tensor& cache_k, const at::Tensor& cache_v, const at::Tensor& q_seqstart,
                                const at::Tensor& k_seqstart, const at::Tensor& k_seqlen, double theta,
                                double linear_scale, bool use_dynamic_scaling, double dynamic_old_context_len,
                                double dynamic_scale_factor, double dynamic_low_freq_factor,
                                double dynamic_high_freq_factor, const OptionalTensor& first_seqpos,
                                const OptionalTensor& seqpos, bool adjacents, std::string_view internal_dtype) {
  check_rope_padded({xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, first_seqpos, seqpos},
                    internal_dtype, nullptr);
  refuse_gradients({xq, xk, xv, cache_k, cache_v});
  at::Tensor out = below_autograd([&] {
    return rope_padded_op().call(xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, theta, linear_scale,
                                 use_dynamic_scaling, dynamic_old_context_len, dynamic_scale_factor,
                                 dynamic_low_freq_factor, dynamic_high_freq_factor, first_seqpos, seqpos, adjacents,
                                 internal_dtype);
  });
  for (const at::Tensor& written : {cache_k, cache_v}) written_inplace(written, nullptr);
  return out;
}

void rope_padded_out_autograd(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv,
                              const at::Tensor& cache_k, const at::Tensor& cache_v, const at::Tensor& q_seqstart,
                              const at::Tensor& k_seqstart, const at::Tensor& k_seqlen, double theta,
                              double linear_scale, bool use_dynamic_scaling, double dynamic_old_context_len,
                              double dynamic_scale_factor, double dynamic_low_freq_factor,
                              double dynamic_high_freq_factor, const OptionalTensor& first_seqpos,
                              const OptionalTensor& seqpos, bool adjacents, std::string_view internal_dtype,
                              const at::Tensor& out_q) {
  check_rope_padded({xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, first_seqpos, seqpos},
                    internal_dtype, &out_q);
  refuse_gradients({xq, xk, xv, cache_k, cache_v, out_q});
  below_autograd([&] {
    rope_padded_out_op().call(xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, theta, linear_scale,
                              use_dynamic_scaling, dynamic_old_context_len, dynamic_scale_factor,
                              dynamic_low_freq_factor, dynamic_high_freq_factor, first_seqpos, seqpos, adjacents,
                              internal_dtype, out_q);
  });
  for (const at::Tensor& written : {cache_k, cache_v, out_q}) written_inplace(written, nullptr);
}

// ---- rotary ----
at::Tensor rotary_cpu(const at::Tensor& x, double theta, bool adjacents, bool inverse) {
  return run_rotary(x, theta, adjacents, inverse,
                    [](const RotaryParams& params) { cpu::rotary(params, torch_threads()); });
}

at::Tensor rotary_meta(const at::Tensor& x, double, bool, bool) {
  check_rotary(x);
  return at::empty_symint(x.sym_sizes(), x.options());
}

// The inverse of a rotation is its transpose. Saved: theta, adjacents, inverse.
torch::autograd::variable_list rotary_gradients(const torch::autograd::variable_list& grads,
                                                const SavedForGradient& saved) {
  return {rotary_op().call(grads[0], saved.numbers[0], saved.numbers[1] != 0, saved.numbers[2] == 0)};
}

at::Tensor rotary_autograd(const at::Tensor& x, double theta, bool adjacents, bool inverse) {
  const auto node = GradientNode::record("XformersRotaryBackward", rotary_gradients, {x});
  at::Tensor out = below_autograd([&] { return rotary_op().call(x, theta, adjacents, inverse); });
  if (node) node->save({}, {theta, double(adjacents), double(inverse)});
  return with_history(std::move(out), node);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  m.impl("rope_padded", xformers::ops::rope_padded<xformers::ops::run_cpu>);
  m.impl("rope_padded_out", xformers::ops::rope_padded_out<xformers::ops::run_cpu>);
  m.impl("rotary", xformers::ops::rotary_cpu);
}

TORCH_LIBRARY_IMPL(xformers, Meta, m) {
  m.impl("rope_padded", xformers::ops::rope_padded<xformers::ops::no_run>);
  m.impl("rope_padded_out", xformers::ops::rope_padded_out<xformers::ops::no_run>);
  m.impl("rotary", xformers::ops::rotary_meta);
}

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  m.impl("rope_padded", xformers::ops::rope_padded_autograd);
  m.impl("rope_padded_out", xformers::ops::rope_padded_out_autograd);
  m.impl("rotary", xformers::ops::rotary_autograd);
}
