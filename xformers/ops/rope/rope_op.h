// The arguments of the rotary operators.
#pragma once

#include "xformers/kernels/params/rope.h"
#include "xformers/ops/common/operator.h"

namespace xformers::ops {

struct RopePadded {
  static constexpr const char* kName = "rope_padded";
  using Result = at::Tensor;
  at::Tensor xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen;
  double theta = 10000, linear_scale = 1;
  bool use_dynamic_scaling = false;
  double dynamic_old_context_len = 8192, dynamic_scale_factor = 16, dynamic_low_freq_factor = 1,
         dynamic_high_freq_factor = 32;
  OptionalTensor first_seqpos{}, seqpos{};
  bool adjacents = true;
  std::string_view internal_dtype = "";

  static constexpr auto arguments() {
    using A = RopePadded;
    return std::tuple{arg("xq", &A::xq),
                      arg("xk", &A::xk),
                      arg("xv", &A::xv),
                      arg("cache_k", &A::cache_k).written(),
                      arg("cache_v", &A::cache_v).written(),
                      arg("q_seqstart", &A::q_seqstart),
                      arg("k_seqstart", &A::k_seqstart),
                      arg("k_seqlen", &A::k_seqlen),
                      arg("theta", &A::theta),
                      arg("linear_scale", &A::linear_scale),
                      arg("use_dynamic_scaling", &A::use_dynamic_scaling),
                      arg("dynamic_old_context_len", &A::dynamic_old_context_len),
                      arg("dynamic_scale_factor", &A::dynamic_scale_factor),
                      arg("dynamic_low_freq_factor", &A::dynamic_low_freq_factor),
                      arg("dynamic_high_freq_factor", &A::dynamic_high_freq_factor),
                      arg("first_seqpos", &A::first_seqpos),
                      arg("seqpos", &A::seqpos),
                      arg("adjacents", &A::adjacents),
                      arg("internal_dtype", &A::internal_dtype)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(xq); }
};

// The same into a tensor of the queries' shape.
struct RopePaddedOut : RopePadded {
  static constexpr const char* kName = "rope_padded_out";
  using Result = void;
  at::Tensor out_q;

  static constexpr auto arguments() {
    return std::tuple_cat(RopePadded::arguments(), std::tuple{arg("out_q", &RopePaddedOut::out_q).written().keyword()});
  }
  void check() const;
  void empty() const {}
};

// Keys and values with one `expand`ed head count as one head.
bool has_expanded_heads(const at::Tensor& t);

struct Rotary {
  static constexpr const char* kName = "rotary";
  using Result = at::Tensor;
  at::Tensor x;
  double theta = 10000;
  bool adjacents = false, inverse = false;
  double linear_scale = 1;
  bool use_dynamic_scaling = false;
  double dynamic_old_context_len = 8192, dynamic_scale_factor = 16, dynamic_low_freq_factor = 1,
         dynamic_high_freq_factor = 32;

  static constexpr auto arguments() {
    using A = Rotary;
    return std::tuple{arg("x", &A::x),
                      arg("theta", &A::theta),
                      arg("adjacents", &A::adjacents),
                      arg("inverse", &A::inverse),
                      arg("linear_scale", &A::linear_scale),
                      arg("use_dynamic_scaling", &A::use_dynamic_scaling),
                      arg("dynamic_old_context_len", &A::dynamic_old_context_len),
                      arg("dynamic_scale_factor", &A::dynamic_scale_factor),
                      arg("dynamic_low_freq_factor", &A::dynamic_low_freq_factor),
                      arg("dynamic_high_freq_factor", &A::dynamic_high_freq_factor)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(x); }
};

// How an operator's arguments say that rotations are stretched.
template <class Arguments>
RopeScaling scaling_of(const Arguments& args) {
  return {args.theta,
          args.linear_scale,
          args.use_dynamic_scaling,
          args.dynamic_old_context_len,
          args.dynamic_scale_factor,
          args.dynamic_low_freq_factor,
          args.dynamic_high_freq_factor};
}

}  // namespace xformers::ops
