// The rotary operators as typed functions, and the checks that all devices share.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string_view>

#include "xformers/kernels/params/rope.h"
#include "xformers/ops/common/arguments.h"

namespace xformers::ops {

// rope_padded_out has out_q as its last argument and returns nothing.
using RopePadded = at::Tensor(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv,
                              const at::Tensor& cache_k, const at::Tensor& cache_v, const at::Tensor& q_seqstart,
                              const at::Tensor& k_seqstart, const at::Tensor& k_seqlen, double theta,
                              double linear_scale, bool use_dynamic_scaling, double dynamic_old_context_len,
                              double dynamic_scale_factor, double dynamic_low_freq_factor,
                              double dynamic_high_freq_factor, const OptionalTensor& first_seqpos,
                              const OptionalTensor& seqpos, bool adjacents, std::string_view internal_dtype);
using RopePaddedOut = void(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv, const at::Tensor& cache_k,
                           const at::Tensor& cache_v, const at::Tensor& q_seqstart, const at::Tensor& k_seqstart,
                           const at::Tensor& k_seqlen, double theta, double linear_scale, bool use_dynamic_scaling,
                           double dynamic_old_context_len, double dynamic_scale_factor, double dynamic_low_freq_factor,
                           double dynamic_high_freq_factor, const OptionalTensor& first_seqpos,
                           const OptionalTensor& seqpos, bool adjacents, std::string_view internal_dtype,
                           const at::Tensor& out_q);
using Rotary = at::Tensor(const at::Tensor& x, double theta, bool adjacents, bool inverse);

const c10::TypedOperatorHandle<RopePadded>& rope_padded_op();
const c10::TypedOperatorHandle<RopePaddedOut>& rope_padded_out_op();
const c10::TypedOperatorHandle<Rotary>& rotary_op();

// The tensors of one call.
struct RopeTensors {
  const at::Tensor &xq, &xk, &xv, &cache_k, &cache_v, &q_seqstart, &k_seqstart, &k_seqlen;
  const OptionalTensor &first_seqpos, &seqpos;
};

void check_rope_padded(const RopeTensors& t, std::string_view internal_dtype, const at::Tensor* out_q);
void check_rotary(const at::Tensor& x);

// Keys and values with one `expand`ed head count as one head.
bool has_expanded_heads(const at::Tensor& t);

}  // namespace xformers::ops
