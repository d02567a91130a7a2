// Who multiplies what, and what travels meanwhile, where a product is spread over the ranks of a group. Plain data, a
// pure function of its arguments: the same on every rank, and checked for any number of ranks without running them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace xformers::parallel {

enum class Pattern {
  kGather,   // every rank has a shard of the rows; all rows are multiplied on each: all-gather, then product
  kScatter,  // every rank has a summand of each row's result: product, then reduce-scatter
};

// One product of one rank, and one transfer. kGather: the transfer brings the rows of this product, so it ends before
// the product begins. kScatter: the transfer takes the result away, so it begins when the product has ended.
struct Step {
  int64_t rank = 0;           // kGather: where the rows come from; kScatter: who gets the result
  int64_t send_to = -1;       // -1: nothing travels, the rows are this rank's own
  int64_t receive_from = -1;  // what arrives is as large as what is sent
};

// kGather: own rows first, then those of rank - 1, rank - 2, ... (mod ranks), which leave their owner at once.
// kScatter: results for rank + 1, rank + 2, ..., own last. In every step all ranks send, each to another, so no rank
// waits in a circle and every link carries what it must, once.
std::vector<Step> overlapped_steps(Pattern pattern, int64_t ranks, int64_t rank);

// The order where one collective moves everything: ranks 0, 1, ....
std::vector<Step> plain_steps(int64_t ranks);

// A spread product. Each rank has, or ends with, `rows` rows.
struct SpreadProduct {
  Pattern pattern = Pattern::kGather;
  int64_t ranks = 1, rows = 0, k = 0, n = 0;  // [rows, k] x [k, n] of every rank with every rank
  int64_t element_size = 2;                   // bytes

  double transfer_bytes() const;  // of one step
};

// What a device and its links reach.
struct Rates {
  double flops = 0, bytes = 0;                       // a second
  double product_latency = 0, transfer_latency = 0;  // seconds
};

// Figures that all ranks have, whatever they measure: ranks that chose for themselves could choose differently, and
// would wait for each other for ever. From two H200 with NVLink, and from Gloo between two processes of one thread.
Rates rates_of(bool is_cuda, int64_t element_size);

// Whether products are split by rank so that transfers hide behind them.
struct Choice {
  bool overlap = false;
  double overlapped_seconds = 0, plain_seconds = 0;  // predicted
  std::string explain() const;
};
Choice choose(const SpreadProduct& product, const Rates& rates);

}  // namespace xformers::parallel
