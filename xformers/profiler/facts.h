// What a rank knows and its trace doesn't say, in a file beside the trace: <trace without
// .pt.trace.json.gz>.facts.json, an object of which everything may be missing:
//
//   step_time_s          of a step that nothing slowed down
//   rank, device, major, minor
//   memory               {peak_bytes, classes: {name: bytes}, lines: [{where, class, bytes}]}
//   packed               the lengths of packed sequences, a row per call of an operator, in order:
//                        {operator, cu_seqlens_q: [0, 5, 9], cu_seqlens_k, seqused_k}
//   notes                [sentence]
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace xformers::profiler {

inline constexpr const char* kFactsEnding = ".facts.json";
std::filesystem::path facts_path(const std::filesystem::path& trace);
std::string facts_text(const std::filesystem::path& trace);  // "{}" where there are none, or what is there is damaged

// By operator: of each of its calls, what the named tensors of integers held.
using Lengths = std::map<std::string, std::vector<int64_t>>;
std::map<std::string, std::vector<Lengths>> packed_calls(const std::filesystem::path& trace);

}  // namespace xformers::profiler
