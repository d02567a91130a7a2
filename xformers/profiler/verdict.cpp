#include "xformers/profiler/verdict.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

namespace xformers::profiler {
namespace {

std::string format(const char* text, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, text, value);
  return buffer;
}
std::string percent(double share) { return format("%.0f %%", 100 * share); }
std::string milliseconds(double us) { return format("%.1f ms", us * 1e-3); }

// What a part takes beyond what the device's limits ask for.
struct Loss {
  double microseconds;
  std::string what, advice;
};

std::vector<Loss> losses(const Judged& judged) {
  const auto part = [&](Part p) { return judged.step.parts[static_cast<size_t>(p)]; };
  const auto beyond = [](double time, double share) {
    return share < 0 ? 0.5 * time : time * (1 - std::min(share, 1.0));
  };
  const auto reach = [](double share) {
    return share < 0 ? std::string(" (the device's limit is not known)")
                     : " at " + percent(share) + " of the device's limit";
  };
  std::vector<Loss> result{
      {beyond(part(Part::kProducts), judged.products_share), "matrix products" + reach(judged.products_share),
       "Give the products larger or rounder sizes (multiples of 64, a larger batch) or a narrower dtype: bf16, fp8, "
       "2:4 "
       "sparsity"},
      {beyond(part(Part::kAttention), judged.attention_share), "attention" + reach(judged.attention_share),
       "Use xformers.ops.memory_efficient_attention with bf16 and a mask class instead of a tensor, packed sequences "
       "instead of padding, or a window"},
      {beyond(part(Part::kOtherCompute), judged.bandwidth_share),
       "operators that move memory" + reach(judged.bandwidth_share),
       "Fuse them: xformers' norms, SwiGLU, rotary embedding and dropout, or torch.compile"},
      {part(Part::kCommunication), "communication that no computation hides",
       "Overlap it: prefetch parameters, larger buckets, or a layout with less to send"},
      {part(Part::kCopies), "copies",
       "Pin the memory of batches, copy with non_blocking=True one step ahead, and keep masks "
       "and constants on the device"},
      {part(Part::kIdleHost),
       judged.on_gpu ? "waiting for the host, which launches too late" : "time between operators, in Python",
       "Give the host less to do: torch.compile, CUDA graphs or a larger batch, and no .item() or print inside of the "
       "step"},
      {part(Part::kIdleOther), "idle time of other reasons",
       "Look at the timeline for what the device waits for: data, synchronisation, or the end of a step"}};
  std::stable_sort(result.begin(), result.end(),
                   [](const Loss& a, const Loss& b) { return a.microseconds > b.microseconds; });
  // A slow rank holds up all others, and is found and mended more easily than anything else: it comes first.
  constexpr double kWorthNaming = 0.05;
  const bool waits = judged.slowest_over_median * 1e6 > kWorthNaming * judged.step.duration;
  if (waits && judged.ranks && !judged.ranks->computation.empty()) {
    const Deviation& worst = judged.ranks->computation[0];
    const RankTimes& rank = judged.ranks->ranks[worst.slowest];
    const std::string name = rank.info.rank >= 0 ? "rank " + std::to_string(rank.info.rank)
                                                 : std::filesystem::path(rank.info.path).filename().string();
    result.insert(result.begin(), {judged.slowest_over_median * 1e6,
                                   "waiting for " + name + ", whose kernel " + worst.kernel + " is slow",
                                   "Look at " + name + " first: its clocks, its temperature, its input"});
  }
  return result;
}

}  // namespace

std::vector<std::string> verdict(const Judged& judged) {
  const Step& step = judged.step;
  if (step.duration <= 0) return {"There is no step to judge in these traces.", "", ""};
  const size_t largest =
      static_cast<size_t>(std::max_element(step.parts.begin(), step.parts.end()) - step.parts.begin());
  const std::vector<Loss> lost = losses(judged);
  const std::string where = judged.on_gpu ? "on the GPU" : "on the CPU";
  return {"A step takes " + milliseconds(step.duration) + " " + where + ", of which " +
              percent(step.parts[largest] / step.duration) + " goes to: " + kPartNames[largest] + ".",
          "What costs most beyond the limits is " + lost[0].what + ": about " + milliseconds(lost[0].microseconds) +
              " a step; next comes " + lost[1].what + " with " + milliseconds(lost[1].microseconds) + ".",
          lost[0].advice + "."};
}

}  // namespace xformers::profiler
