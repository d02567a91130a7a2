#include "xformers/ops/sequence_parallel/schedule.h"

#include <algorithm>
#include <cstdio>

namespace xformers::parallel {

std::vector<Step> overlapped_steps(Pattern pattern, int64_t ranks, int64_t rank) {
  std::vector<Step> steps;
  const auto other = [&](int64_t distance) { return ((rank + distance) % ranks + ranks) % ranks; };
  if (pattern == Pattern::kGather) steps.push_back({rank});
  for (int64_t i = 1; i < ranks; ++i) {
    const int64_t before = other(-i), behind = other(i);
    steps.push_back({pattern == Pattern::kGather ? before : behind, behind, before});
  }
  if (pattern == Pattern::kScatter) steps.push_back({rank});
  return steps;
}

std::vector<Step> plain_steps(int64_t ranks) {
  std::vector<Step> steps;
  for (int64_t rank = 0; rank < ranks; ++rank) steps.push_back({rank});
  return steps;
}

double SpreadProduct::transfer_bytes() const {
  return static_cast<double>(rows) * static_cast<double>(pattern == Pattern::kGather ? k : n) *
         static_cast<double>(element_size);
}

Rates rates_of(bool is_cuda, int64_t element_size) {
  const double narrow = 2.0 / static_cast<double>(element_size);
  if (is_cuda) return {7.9e14 * narrow, 2.3e11, 8e-6, 25e-6};
  return {4e10, 4e8, 5e-6, 250e-6};
}

// The products of a rank follow each other, and so do its transfers; each waits for what it needs.
Choice choose(const SpreadProduct& product, const Rates& rates) {
  const auto seconds_of_product = [&](double parts) {
    return rates.product_latency + 2.0 * parts * static_cast<double>(product.rows) * static_cast<double>(product.k) *
                                       static_cast<double>(product.n) / rates.flops;
  };
  const double bytes = product.transfer_bytes(), all = static_cast<double>(product.ranks);
  Choice choice;
  choice.plain_seconds = seconds_of_product(all);
  if (product.ranks > 1) choice.plain_seconds += rates.transfer_latency + (all - 1) * bytes / rates.bytes;
  const double transfer = rates.transfer_latency + bytes / rates.bytes, part = seconds_of_product(1);
  double link_free = 0, device_free = 0;
  for (const Step& step : overlapped_steps(product.pattern, product.ranks, 0)) {
    const bool travels = step.send_to >= 0;
    if (product.pattern == Pattern::kGather) {
      if (travels) link_free += transfer;
      device_free = std::max(device_free, travels ? link_free : 0) + part;
    } else {
      device_free += part;
      if (travels) link_free = std::max(link_free, device_free) + transfer;
    }
  }
  choice.overlapped_seconds = std::max(link_free, device_free);
  // A gain of less than a launch is within what predictions miss.
  choice.overlap = product.ranks > 1 && choice.overlapped_seconds + rates.product_latency < choice.plain_seconds;
  return choice;
}

std::string Choice::explain() const {
  char text[160];
  std::snprintf(text, sizeof text,
                "%s: predicted %.0f us with a product per rank, %.0f us as one collective and one product",
                overlap ? "overlapped" : "one collective", overlapped_seconds * 1e6, plain_seconds * 1e6);
  return text;
}

}  // namespace xformers::parallel
