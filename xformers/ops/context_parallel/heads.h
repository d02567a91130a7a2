// Heads that the ranks of a team share out (Ulysses): each computes all tokens of the team for some heads.
#pragma once

#include "xformers/ops/context_parallel/plan.h"

namespace xformers::parallel {

struct HeadShare {
  int64_t heads = 1, key_heads = 1;  // key_heads divides heads: neighbouring ones share a key head
  int64_t team_size = 1;

  Range queries(int64_t member) const { return {heads * member / team_size, heads * (member + 1) / team_size}; }
  // Those that the query heads read; one may be with several ranks.
  Range keys(int64_t member) const {
    const Range range = queries(member);
    const int64_t shared = heads / key_heads;
    return range.size() == 0 ? Range{} : Range{range.begin / shared, (range.end - 1) / shared + 1};
  }
  // Whether every key head here has as many query heads here.
  bool is_even(int64_t member) const {
    const Range range = queries(member);
    const int64_t shared = heads / key_heads;
    return keys(member).size() == 1 || (range.begin % shared == 0 && range.end % shared == 0);
  }
};

// Numbers that a rank is sent by others in forward: keys and values, and what moves inside its team.
int64_t elements_received(const ContextPlan& plan, const TeamPlan& team, int64_t rank, const HeadShare& share,
                          int64_t head_dim);

}  // namespace xformers::parallel
