// A plan as one rank of a group carries it out: what moves, in which order. Rows are [tokens, ...], contiguous.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "xformers/ops/context_parallel/plan.h"
#include "xformers/ops/sequence_parallel/process_group.h"

namespace xformers::ops {

// A plan and what one team does in it; the last ones are kept: the layers of a model ask for the same.
struct PlanOfTeam {
  parallel::ContextPlan plan;
  int64_t index = 0;
  parallel::TeamPlan team;
};
std::shared_ptr<const PlanOfTeam> plan_of(const std::vector<int64_t>& problem, int64_t rank);

// Rows that are on their way.
struct Transit {
  at::Tensor sent, arriving;  // what is sent stays until the transfer has ended
};

class Carrier {
 public:
  // xformers::Error where the plan is for another number of ranks than the group's.
  Carrier(const char* operation, std::string_view group_name, const std::vector<int64_t>& problem);

  Group group;

  const parallel::ContextPlan& plan() const { return kept_->plan; }
  const parallel::TeamPlan& team() const { return kept_->team; }
  int64_t member() const { return group.rank % plan().problem.team_size; }
  int64_t local_tokens() const { return plan().rows_of(group.rank).size(); }

  // The team's own rows of keys to those of a step, as they lie there.
  Transit start_keys(const char* what, const parallel::KeyStep& step, const at::Tensor& rows) const;
  at::Tensor finish_keys(const char* what, const parallel::KeyStep& step, const Transit& transit) const;

  // The adjoint: rows of a step's keys, added to `sum` where they are owned, in the order of teams.
  Transit start_gradients(const char* what, const parallel::KeyStep& step, const at::Tensor& rows) const;
  void finish_gradients(const char* what, const parallel::KeyStep& step, const Transit& transit, at::Tensor& sum) const;

  // x [batch, own tokens, heads, ...] to [batch, tokens of the team, heads of this rank, ...]; heads_of[m] are those of
  // member m.
  at::Tensor to_heads(const char* what, const at::Tensor& x, const std::vector<parallel::Range>& heads_of) const;
  // The adjoint, which is the inverse where nobody shares a head; `heads` in all.
  at::Tensor from_heads(const char* what, const at::Tensor& x, const std::vector<parallel::Range>& heads_of,
                        int64_t heads) const;

  // Rows of x, sends[i] to rank i; waits.
  at::Tensor exchange(const char* what, const at::Tensor& rows, const std::vector<int64_t>& receives,
                      const std::vector<int64_t>& sends) const;

 private:
  std::vector<int64_t> counts(const std::vector<parallel::Transfer>& transfers) const;

  std::shared_ptr<const PlanOfTeam> kept_;
};

}  // namespace xformers::ops
