// Dropout's arguments: the probability and the random state that draw_philox_state gives.
#pragma once

#include "xformers/kernels/params/dropout.h"
#include "xformers/ops/common/check.h"

namespace xformers::ops {

// Whether a random state is drawn: nothing is dropped at 0, and everything at 1.
inline bool draws(double p) { return p > 0 && p < 1; }

// `what`: is dropped.
inline void check_probability(const Check& check, double p, const char* what = "elements") {
  if (p >= 0 && p <= 1) return;
  check.fail("p", std::to_string(p), "a probability in [0, 1]", std::string("p is the share of ") + what + " to drop");
}

// `x`: the tensor beside which a state on a device must lie.
inline void check_dropout(const Check& check, double p, const OptionalTensor& philox_state, const at::Tensor& x,
                          const char* x_name) {
  check_probability(check, p);
  if (!draws(p)) return;
  if (!philox_state || philox_state->scalar_type() != at::kLong || philox_state->dim() != 1 ||
      philox_state->sym_size(0) != 2 || !philox_state->is_contiguous()) {
    check.fail("philox_state", describe(philox_state), "contiguous int64 [2] where 0 < p < 1",
               "pass torch.ops.xformers.draw_philox_state()");
  }
  if (!philox_state->is_cpu()) check.same_device("philox_state", *philox_state, x, x_name);
}

// The pointer stays valid as long as the tensor.
inline Dropout to_dropout(double p, const OptionalTensor& philox_state) {
  Dropout dropout;
  dropout.p = p;
  if (!draws(p)) return dropout;
  const auto* words = static_cast<const uint64_t*>(philox_state->const_data_ptr());
  if (philox_state->is_cpu()) {
    dropout.philox_seed = words[0];
    dropout.philox_offset = words[1];
  } else {
    dropout.device_state = words;
  }
  return dropout;
}

}  // namespace xformers::ops
