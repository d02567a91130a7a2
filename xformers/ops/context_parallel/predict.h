// How long plans take, by a simulation of their events: computing, and transfers of links that ranks have. It decides
// between plans, from figures that all ranks have, and answers for more devices than there are.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "xformers/ops/context_parallel/heads.h"

namespace xformers::parallel {

// What a rank and its links reach. Ranks ranks_per_host h, ... are host h's.
struct Machine {
  int64_t ranks_per_host = 1;
  double flops = 0;                              // a second, of attention
  double link_bytes = 0, network_bytes = 0;      // a second and direction, of a rank: inside a host, and out of it
  double link_latency = 0, network_latency = 0;  // seconds, of a transfer
  double call_seconds = 0;                       // of a call of attention beside its products
};

// Two H200 with NVLink and, between hosts of 8, a port of 400 Gb/s each; CPUs: processes of one thread, over Gloo.
Machine machine_of(bool is_cuda);

struct Workload {
  int64_t batch = 1, heads = 1, key_heads = 1, head_dim = 1;
  int64_t element_size = 2;  // bytes
};

struct Prediction {
  double seconds = 0;
  double ideal_seconds = 0;    // the products alone, spread evenly
  double compute_seconds = 0;  // of the rank that computes most
  double bytes_received = 0;   // of the rank that is sent most
  double key_bytes = 0;        // keys and values beyond a rank's own, of the rank that holds most at a time
};

struct Predictions {
  Prediction forward, backward;
};

Predictions predict(const ContextPlan& plan, const Workload& workload, const Machine& machine);

// What a caller asks for; the rest is chosen.
struct Wish {
  bool any_layout = true, any_method = true;
  Layout layout = Layout::kContiguous;
  std::string method{};    // "all_gather", "ring", "ulysses", "hybrid"
  int64_t head_ranks = 0;  // of hybrid, the ranks of a team; 0: any
};

std::string method_name(const ContextProblem& problem);
std::string layout_name(Layout layout);
Layout layout_of(std::string_view name);  // xformers::Error for another name

struct Chosen {
  ContextProblem problem;
  double seconds = 0;       // predicted, forward and backward
  std::string explanation;  // a line per plan that was compared
};

// Of the plans whose predicted time of forward and backward is within 2 % of the least, the one that holds the fewest
// keys of others; of equal ones the first. xformers::Error where no plan is as wished.
Chosen choose_context(ContextProblem problem, const Wish& wish, const Workload& workload, const Machine& machine);

}  // namespace xformers::parallel
