// The name under which attention shows to Python's dispatch modes and compilers.
//
// Checkpoint policies of existing programs name the operators of the contracts (xformers_flash::flash_fwd,
// xformers::efficient_attention_forward_cutlass) and compare the operators that a mode sees with them. So where a mode
// looks on, a call that records gradients runs as the operator of the contract that would be chosen for it; elsewhere
// it doesn't cost a thing. These operators take two arguments of ours for it: philox_state, dropout's random state,
// which has been drawn; and raw_lse: lse is then [2, ...], the lse and lse_low of attention_forward, and what else they
// return of dropout's state is empty.
#pragma once

#include <optional>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/common/random.h"

namespace xformers::ops {

struct Appearance {
  const OptionalTensor& philox_state;
  bool raw_lse = false;

  OptionalTensor philox_state_or_draw(double p, at::Device device) const {
    return philox_state ? philox_state : draw_dropout_state(p, device);
  }
};

// attention_forward below autograd, with its lse, under whichever name.
AttentionResult forward_by_name(const AttentionArgs& args);

}  // namespace xformers::ops
