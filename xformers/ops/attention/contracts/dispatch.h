// Which operator runs where the user names none, and which forward goes with which backward.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "xformers/ops/attention/contracts/reasons.h"

namespace xformers::ops {

struct DispatchOptions {
  bool backward = false;
  bool needs_gradient = false;          // forward: a backward must exist
  bool use_fa3 = false;                 // flash3 takes part
  const Contract* pair_with = nullptr;  // operator of the other direction
  std::optional<bool> packed_lse{};     // backward: format of the log-sum-exp that is there
};

// In the order in which they are asked.
std::vector<const Contract*> dispatch_order(const AttentionRequest& request, const DispatchOptions& options);

// The first that takes the call; NotImplementedError with every operator's reasons if none does.
const Contract& dispatch(const AttentionRequest& request, const DispatchOptions& options);

// xformers::Error with all reasons, if there are any. name: of the operator in the message.
void require_supported(const Contract& contract, const AttentionRequest& request, const std::string& name);

// Why the two don't go together: the random streams of dropout, or the format of the log-sum-exp of packed sequences.
std::optional<std::string> pair_objection(const Contract& forward, const Contract& backward, double p,
                                          int64_t num_sequences);

}  // namespace xformers::ops
