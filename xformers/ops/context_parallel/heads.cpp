#include "xformers/ops/context_parallel/heads.h"

namespace xformers::parallel {

int64_t elements_received(const ContextPlan& plan, const TeamPlan& team, int64_t rank, const HeadShare& share,
                          int64_t head_dim) {
  const int64_t member = rank % share.team_size;
  const int64_t queries = share.queries(member).size(), keys = share.keys(member).size();
  const int64_t own = plan.rows_of(rank).size(), others = size_of(team.owned) - own;
  const int64_t between = team.rows_received(rank / share.team_size) * 2 * keys;
  const int64_t inside = others * (queries + 2 * keys) + own * (share.heads - queries);  // there, and results back
  return (between + inside) * head_dim;
}

}  // namespace xformers::parallel
