#include "xformers/ops/context_parallel/predict.h"

#include <algorithm>

namespace xformers::parallel {
namespace {

constexpr double kBackwardFlops = 2.5;  // of forward's: five products instead of two
constexpr int64_t kSumBytes = 4;        // of an element of the sums of gradients

// Bytes of a rank in one transfer, by where they come from and go to.
struct Traffic {
  double in_host = 0, in_network = 0, out_host = 0, out_network = 0;
  double received() const { return in_host + in_network; }
};

double seconds_of(const Traffic& traffic, const Machine& machine) {
  const double host = std::max(traffic.in_host, traffic.out_host);
  const double network = std::max(traffic.in_network, traffic.out_network);
  if (host + network == 0) return 0;
  return std::max(host > 0 ? machine.link_latency + host / machine.link_bytes : 0,
                  network > 0 ? machine.network_latency + network / machine.network_bytes : 0);
}

// One step of a team, as the rank with most heads has it; the others' are alike.
struct StepCost {
  double calls = 0, flops = 0;  // forward
  Traffic keys;                 // those of gradients go the other way
  std::vector<int64_t> partners;
};

class Simulation {
 public:
  Simulation(const ContextPlan& plan, const Workload& workload, const Machine& machine)
      : plan_(plan),
        workload_(workload),
        machine_(machine),
        share_{workload.heads, workload.key_heads, plan.problem.team_size} {}

  // Costs are the same for both passes, but for their number of products.
  Predictions run() {
    for (int64_t t = 0; t < plan_.problem.teams(); ++t) costs_.push_back(costs_of(t));
    return {run_pass(false), run_pass(true)};
  }

 private:
  Prediction run_pass(bool backward) {
    const size_t teams = costs_.size(), steps = costs_.front().size();
    computed_.assign(teams, 0), computed_before_.assign(teams, 0), exchanged_.assign(teams, 0);
    Prediction result = common_;
    for (size_t s = 0; s < steps; ++s) {
      // The keys of a step set out when those before have come, and what had been queued then is computed.
      exchange(s, /*gradients=*/false, computed_before_);
      computed_before_ = computed_;
      for (size_t t = 0; t < teams; ++t)
        computed_[t] = std::max(computed_[t], arrived_[t]) + computing_seconds(t, s, backward);
      if (backward) exchange(s, /*gradients=*/true, computed_);
    }
    for (size_t t = 0; t < teams; ++t) {
      double alone = 0;
      for (size_t s = 0; s < steps; ++s) {
        alone += computing_seconds(t, s, backward);
        result.ideal_seconds += costs_[t][s].flops * passes(backward) / machine_.flops;
      }
      result.compute_seconds = std::max(result.compute_seconds, alone);
      const double inside = seconds_inside(static_cast<int64_t>(t), backward);
      result.seconds = std::max(result.seconds, std::max(computed_[t], exchanged_[t]) + inside);
    }
    // Flops are those of one rank's heads: of all heads, spread over all ranks.
    result.ideal_seconds *= static_cast<double>(workload_.heads) / static_cast<double>(share_.queries(most_).size()) /
                            static_cast<double>(plan_.problem.ranks);
    return result;
  }

  static double passes(bool backward) { return backward ? kBackwardFlops : 1; }
  double computing_seconds(size_t team, size_t step, bool backward) const {
    const StepCost& cost = costs_[team][step];
    return cost.calls * machine_.call_seconds + cost.flops * passes(backward) / machine_.flops;
  }
  int64_t host_of(int64_t team) const { return team * plan_.problem.team_size / machine_.ranks_per_host; }
  double row_bytes() const {
    return 2.0 * static_cast<double>(share_.keys(most_).size() * workload_.head_dim * workload_.batch *
                                     workload_.element_size);
  }

  std::vector<StepCost> costs_of(int64_t team) {
    const TeamPlan plan = plan_.team(team);
    const double flops_of_pair =
        4.0 * static_cast<double>(workload_.head_dim * workload_.batch * share_.queries(most_).size());
    std::vector<StepCost> costs;
    double received = 0, held = 0, before = 0;
    // Sharing out heads copies the team's keys.
    const double shared = share_.team_size > 1 ? static_cast<double>(size_of(plan.owned)) * row_bytes() : 0;
    for (const KeyStep& step : plan.steps) {
      StepCost cost;
      double rows = 0;
      cost.calls = static_cast<double>(step.pieces.size());
      for (const Piece& piece : step.pieces) cost.flops += flops_of_pair * static_cast<double>(piece.area);
      for (const Transfer& transfer : step.arrivals) {
        if (transfer.team == team) continue;
        const double bytes = static_cast<double>(size_of(transfer.rows)) * row_bytes();
        (host_of(transfer.team) == host_of(team) ? cost.keys.in_host : cost.keys.in_network) += bytes;
        if (bytes > 0) cost.partners.push_back(transfer.team);
        rows += bytes;
      }
      for (const Transfer& transfer : step.sends) {
        if (transfer.team == team) continue;
        const double bytes = static_cast<double>(size_of(transfer.rows)) * row_bytes();
        (host_of(transfer.team) == host_of(team) ? cost.keys.out_host : cost.keys.out_network) += bytes;
        if (bytes > 0) cost.partners.push_back(transfer.team);
      }
      received += cost.keys.received();
      held = std::max(held, shared + rows + before);
      before = rows;
      costs.push_back(std::move(cost));
    }
    common_.bytes_received = std::max(common_.bytes_received, received);
    common_.key_bytes = std::max(common_.key_bytes, held);
    return costs;
  }

  // A transfer begins when both ends are ready, and a rank's transfers follow each other.
  void exchange(size_t step, bool gradients, const std::vector<double>& ready) {
    const size_t teams = costs_.size();
    std::vector<double> begins(teams);
    for (size_t t = 0; t < teams; ++t) begins[t] = std::max(exchanged_[t], ready[t]);
    if (!gradients) arrived_.assign(teams, 0);
    for (size_t t = 0; t < teams; ++t) {
      const StepCost& cost = costs_[t][step];
      if (cost.partners.empty()) continue;
      Traffic traffic = cost.keys;
      if (gradients) {
        const double wider = static_cast<double>(kSumBytes) / static_cast<double>(workload_.element_size);
        traffic = {wider * traffic.out_host, wider * traffic.out_network, wider * traffic.in_host,
                   wider * traffic.in_network};
      }
      double begin = begins[t];
      for (const int64_t other : cost.partners) begin = std::max(begin, begins[other]);
      exchanged_[t] = begin + seconds_of(traffic, machine_);
      if (!gradients) arrived_[t] = exchanged_[t];
    }
  }

  // Heads that move inside a team before and after: queries, keys, values and results.
  double seconds_inside(int64_t team, bool backward) const {
    const int64_t size = plan_.problem.team_size;
    if (size == 1) return 0;
    const double tokens = static_cast<double>(size_of(plan_.owned[team])) / static_cast<double>(size);
    const double tensors = backward ? 4 : 2;  // with the query's heads: q, out; again with their gradients
    const double keys = backward ? 4 : 2;
    const double bytes = tokens * static_cast<double>(workload_.head_dim * workload_.batch * workload_.element_size) *
                         (tensors * static_cast<double>(share_.queries(most_).size()) +
                          keys * static_cast<double>(share_.keys(most_).size()));
    const double near = static_cast<double>(std::min(size, machine_.ranks_per_host) - 1);
    const double far = static_cast<double>(size) - 1 - near;
    return (tensors + keys) * (far > 0 ? machine_.network_latency : machine_.link_latency) +
           std::max(near * bytes / machine_.link_bytes, far * bytes / machine_.network_bytes);
  }

  const ContextPlan& plan_;
  const Workload& workload_;
  const Machine& machine_;
  const HeadShare share_;
  const int64_t most_ = share_.team_size - 1;  // the member of a team that has most heads
  Prediction common_;                          // of both passes
  std::vector<std::vector<StepCost>> costs_;   // [team][step]
  std::vector<double> arrived_, computed_, computed_before_, exchanged_;
};

}  // namespace

Machine machine_of(bool is_cuda) {
  if (is_cuda) return {8, 5.5e14, 2.3e11, 4.5e10, 25e-6, 35e-6, 8e-6};
  return {1 << 20, 4e10, 4e8, 4e8, 250e-6, 250e-6, 20e-6};
}

Predictions predict(const ContextPlan& plan, const Workload& workload, const Machine& machine) {
  return Simulation(plan, workload, machine).run();
}

}  // namespace xformers::parallel
