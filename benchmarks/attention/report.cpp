#include "benchmarks/attention/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string_view>

#include "xformers/kernels/cpu/attention/attention_cpu.h"

namespace xformers::bench {
namespace {

constexpr double kMiB = 1 << 20;

double copy_or_read_rate(const Row& row, const Timing& timing) { return row.kv_bytes() / timing.median / 1e9; }

const char* role_name(Role role) {
  switch (role) {
    case Role::kOurs: return "ours";
    case Role::kRival: return "rival";
    case Role::kOther: return "other";
    case Role::kRoof: return "roof";
  }
  return "?";
}

std::string percent(std::optional<double> part) {
  char text[16] = "-";
  if (part) std::snprintf(text, sizeof text, "%.0f%%", 100 * *part);
  return text;
}

double geometric_mean(const std::vector<double>& values) {
  double sum = 0;
  for (double value : values) sum += std::log(value);
  return std::exp(sum / static_cast<double>(values.size()));
}

// The same row with something else about it: "bf16 forward full S=512 D=64" for fp32.
const Measured* find(const std::vector<Measured>& rows, std::string name, std::string_view from, std::string_view to) {
  const size_t place = name.find(from);
  if (place == std::string::npos) return nullptr;
  name.replace(place, from.size(), to);
  const auto found = std::find_if(rows.begin(), rows.end(), [&](const Measured& m) { return m.row.name == name; });
  return found == rows.end() ? nullptr : &*found;
}

class Goals {
 public:
  // The worst of the values.
  void at_least(const std::string& name, const std::vector<double>& values, std::optional<double> wanted) {
    if (!values.empty()) list.push_back({name, *std::min_element(values.begin(), values.end()), wanted, true});
  }
  void at_most(const std::string& name, const std::vector<double>& values, double wanted) {
    if (!values.empty()) list.push_back({name, *std::max_element(values.begin(), values.end()), wanted, false});
  }
  void mean_at_least(const std::string& name, const std::vector<double>& values, double wanted) {
    if (!values.empty()) list.push_back({name, geometric_mean(values), wanted, true});
  }
  std::vector<Goal> list;
};

}  // namespace

const Timing* Measured::best_rival() const {
  const auto rivals = timings.find(Role::kRival);
  if (rivals == timings.end() || rivals->second.empty()) return nullptr;
  return &*std::min_element(rivals->second.begin(), rivals->second.end(),
                            [](const Timing& a, const Timing& b) { return a.median < b.median; });
}

const Timing* Measured::side(const std::string& name) const {
  for (const auto& [role, list] : timings) {
    for (const Timing& timing : list) {
      if (timing.side == name) return &timing;
    }
  }
  return nullptr;
}

double Measured::speedup() const {
  const Timing* rival = best_rival();
  return rival ? rival->median / ours().median : NAN;
}

std::optional<double> Measured::of_gemm() const {
  const Timing* gemm = side(kGemm);
  if (!gemm) return std::nullopt;
  return (row.flops() / ours().median) / (gemm_flops() / gemm->median);
}

std::optional<double> Measured::of_dense() const {
  const Timing* dense = side(kDenseSide);
  if (!dense) return std::nullopt;
  Row unmasked = row;
  unmasked.shape.block_q = 0;
  return (row.flops() / ours().median) / (unmasked.flops() / dense->median);
}

std::optional<double> Measured::of_read() const {
  const Timing* read = side(kRead);
  if (!read) return std::nullopt;
  return read->median / ours().median;  // both read the same number of bytes
}

Measured measure(const Row& row, const AlternateOptions& options, bool quick) {
  const std::vector<AttentionSide> sides = attention_sides(row, quick);
  std::vector<Side> plain_sides;
  for (const AttentionSide& side : sides) plain_sides.push_back(side.side);
  const std::vector<Timing> timings = alternate(plain_sides, options);
  Measured measured{row, std::string(row.backward ? cpu::last_backward_kernel() : cpu::last_forward_kernel()), {}};
  for (size_t i = 0; i < sides.size(); ++i) measured.timings[sides[i].role].push_back(timings[i]);
  return measured;
}

void print_header(Family family) {
  const char* rate = reads_memory(family) ? "GB/s" : "GFLOP/s";
  const char* roof = reads_memory(family) ? "of read" : "of GEMM";
  std::printf("\n%-60s %10s %5s %8s %8s   %-14s %10s %8s   %s\n", "row", "ours ms", "+-%", rate, roof, "rival", "ms",
              "speedup", "kernel: others, ms");
  std::fflush(stdout);
}

void print_row(const Measured& m) {
  const bool in_bytes = reads_memory(m.row.family);
  const Timing& ours = m.ours();
  const double rate = in_bytes ? copy_or_read_rate(m.row, ours) : m.gflops(ours);
  std::printf("%-60s %10.3f %5.0f %8.1f %8s", m.row.name.c_str(), ours.median * 1e3, 100 * ours.spread() / 2, rate,
              percent(in_bytes ? m.of_read() : m.of_gemm()).c_str());
  const Timing* rival = m.best_rival();
  if (rival)
    std::printf("   %-14s %10.3f %7.2fx   %s:", rival->side.c_str(), rival->median * 1e3, m.speedup(),
                m.kernel.c_str());
  for (const auto& [role, list] : m.timings) {
    if (role == Role::kOurs) continue;
    for (const Timing& timing : list) {
      if (&timing == rival) continue;
      if (timing.side == kGemm) {
        std::printf(" gemm %.0f GFLOP/s", gemm_flops() / timing.median / 1e9);
      } else if (role == Role::kRoof) {
        std::printf(" %s %.1f GB/s", timing.side.c_str(), copy_or_read_rate(m.row, timing));
      } else {
        std::printf(" %s %.2f", timing.side.c_str(), timing.median * 1e3);
      }
    }
  }
  std::printf("\n");
  std::fflush(stdout);
}

void print_memory(const std::vector<MeasuredMemory>& memory) {
  if (memory.empty()) return;
  const auto text = [](std::optional<double> bytes) {
    char buffer[24] = "failed";
    if (bytes) std::snprintf(buffer, sizeof buffer, "%.1f", *bytes / kMiB);
    return std::string(buffer);
  };
  std::printf("\n%-60s %10s %10s\n", "peak memory beyond inputs and outputs", "ours MiB", "sdpa MiB");
  for (const MeasuredMemory& m : memory) {
    std::printf("%-60s %10s %10s\n", m.row.name.c_str(), text(m.ours).c_str(), text(m.sdpa).c_str());
  }
  std::fflush(stdout);
}

std::vector<Goal> goals(const std::vector<Measured>& rows, const std::vector<MeasuredMemory>& memory) {
  std::map<std::string, std::vector<double>> dense;  // by dtype
  std::vector<double> all_dense, causal_cost, one_query, of_read, decode, decode_of_read, quantized, window, packed,
      extra;
  std::map<std::string, std::vector<double>> against_fp32, by_hand, of_unmodified, of_dense;
  std::map<std::string, std::vector<double>> blocks;
  for (const Measured& m : rows) {
    const std::string dtype = name_of(m.row.shape.dtype);
    switch (m.row.family) {
      case Family::kDense:
        dense[dtype].push_back(m.speedup());
        all_dense.push_back(m.speedup());
        if (m.row.shape.seqlen_q >= 2048) {
          if (const Measured* full = find(rows, m.row.name, " causal ", " full ")) {
            causal_cost.push_back(m.ours().median / full->ours().median);
          }
        }
        if (dtype != "fp32") {
          if (const Measured* single = find(rows, m.row.name, dtype, "fp32")) {
            against_fp32[dtype].push_back(single->ours().median / m.ours().median);
          }
        }
        break;
      case Family::kOneQuery:
        one_query.push_back(m.speedup());
        if (m.of_read()) of_read.push_back(*m.of_read());
        if (const Timing* folded = m.side("sdpa_folded"))
          by_hand["one query"].push_back(folded->median / m.ours().median);
        break;
      case Family::kDecode:
        (m.row.shape.kv_format == KvFormat::kPlain ? decode : quantized).push_back(m.speedup());
        if (m.row.shape.kv_format == KvFormat::kPlain && m.of_read()) decode_of_read.push_back(*m.of_read());
        break;
      case Family::kWindow:
        window.push_back(m.speedup());
        if (const Timing* blocks = m.side("sdpa_blocks")) by_hand["window"].push_back(blocks->median / m.ours().median);
        break;
      case Family::kBlocks:
        of_dense[std::to_string(m.row.shape.block_q)].push_back(m.of_dense().value_or(0));
        if (!m.row.backward) blocks[dtype].push_back(m.speedup());
        break;
      case Family::kPacked: packed.push_back(m.speedup()); break;
      case Family::kModified:
        for (const char* what : {"sinks", "alibi", "softcap", "packed bias"}) {
          if (m.row.name.find(what) != std::string::npos) of_unmodified[what].push_back(m.speedup());
        }
        break;
    }
  }
  for (const MeasuredMemory& m : memory) {
    if (m.ours) extra.push_back(*m.ours / kMiB);
  }
  Goals result;
  result.mean_at_least("fp32 speedup over SDPA, geometric mean", dense["fp32"], 1.1);
  result.mean_at_least("bf16 speedup over SDPA, geometric mean", dense["bf16"], 1.6);
  result.mean_at_least("fp16 speedup over SDPA, geometric mean", dense["fp16"], 1.2);
  result.at_least("speedup over SDPA, worst dense row", all_dense, 0.95);
  result.at_most("causal over full, S >= 2048, worst row", causal_cost, 0.6);
  result.mean_at_least("bf16 speedup over own fp32, geometric mean", against_fp32["bf16"], 1.0);
  result.mean_at_least("fp16 speedup over own fp32, geometric mean", against_fp32["fp16"], 1.0);
  result.at_least("one query: speedup over SDPA, worst row", one_query, 2.5);
  result.at_least("one query: part of read bandwidth, worst row", of_read, 0.75);
  result.at_least("decode: part of read bandwidth, worst row", decode_of_read, 0.70);
  result.at_least("decode: speedup over the best SDPA, worst row", decode, std::nullopt);
  result.at_least("decode int4 and fp8: speedup over SDPA in bf16", quantized, std::nullopt);
  result.at_least("window: speedup over the best SDPA, worst row", window, 3.0);
  for (const auto& [size, wanted] : {std::pair{"128", 0.85}, {"64", 0.85}, {"32", 0.60}, {"16", 0.35}}) {
    result.at_least(std::string("blocks of ") + size + ": part of the dense rate, worst row", of_dense[size], wanted);
  }
  result.at_least("blocks fp32: speedup over SDPA with a bool mask", blocks["fp32"], 6.0);
  result.at_least("blocks bf16: speedup over SDPA with a bool mask", blocks["bf16"], 12.0);
  result.at_least("packed: speedup over the best SDPA, worst row", packed, 1.5);
  result.at_least("one query: speedup over heads folded by hand", by_hand["one query"], std::nullopt);
  result.at_least("window: speedup over blocks cut by hand", by_hand["window"], std::nullopt);
  result.at_least("sinks: speed of the same without, worst row", of_unmodified["sinks"], 0.98);
  result.at_least("ALiBi: speed of the same without, worst row", of_unmodified["alibi"], 0.92);
  result.at_least("softcap: speed of the same without, worst row", of_unmodified["softcap"], 0.70);
  result.at_least("packed bias: speed of a batch with one, worst row", of_unmodified["packed bias"], 0.90);
  result.at_most("extra memory, MiB, worst row", extra, 64);
  return result.list;
}

void print_goals(const std::vector<Goal>& goals) {
  if (goals.empty()) return;
  std::printf("\n%-60s %10s %10s\n", "summary", "measured", "goal");
  for (const Goal& goal : goals) {
    std::printf("%-60s %10.2f", goal.name.c_str(), goal.value);
    if (goal.wanted)
      std::printf(" %7s %.2f   %s", goal.at_least ? ">=" : "<=", *goal.wanted, goal.met() ? "met" : "NOT MET");
    std::printf("\n");
  }
}

nlohmann::json to_json(const std::vector<Measured>& rows, const std::vector<MeasuredMemory>& memory) {
  nlohmann::json result{{"rows", nlohmann::json::array()}, {"memory", nlohmann::json::array()}};
  for (const Measured& m : rows) {
    nlohmann::json sides = nlohmann::json::array();
    for (const auto& [role, list] : m.timings) {
      for (const Timing& t : list) {
        sides.push_back({{"name", t.side},
                         {"role", role_name(role)},
                         {"median_s", t.median},
                         {"quartile1_s", t.low},
                         {"quartile3_s", t.high},
                         {"samples", t.samples}});
      }
    }
    nlohmann::json row{{"name", m.row.name},         {"case", testing::to_text(m.row.shape)},
                       {"backward", m.row.backward}, {"kernel", m.kernel},
                       {"flops", m.row.flops()},     {"sides", sides}};
    if (m.best_rival()) row["rival"] = m.best_rival()->side, row["speedup"] = m.speedup();
    if (m.of_dense()) row["of_dense"] = *m.of_dense();
    if (m.of_gemm()) row["gflops"] = m.gflops(m.ours()), row["of_gemm"] = *m.of_gemm();
    if (m.of_read()) row["gbytes"] = copy_or_read_rate(m.row, m.ours()), row["of_read"] = *m.of_read();
    result["rows"].push_back(row);
  }
  for (const MeasuredMemory& m : memory) {
    nlohmann::json row{{"name", m.row.name}, {"case", testing::to_text(m.row.shape)}, {"backward", m.row.backward}};
    if (m.ours) row["ours_bytes"] = *m.ours;
    if (m.sdpa) row["sdpa_bytes"] = *m.sdpa;
    result["memory"].push_back(row);
  }
  return result;
}

nlohmann::json to_json(const std::vector<Goal>& goals) {
  nlohmann::json result = nlohmann::json::array();
  for (const Goal& goal : goals) {
    nlohmann::json line{{"name", goal.name}, {"measured", goal.value}};
    if (goal.wanted)
      line["goal"] = *goal.wanted, line["comparison"] = goal.at_least ? ">=" : "<=", line["met"] = goal.met();
    result.push_back(line);
  }
  return result;
}

}  // namespace xformers::bench
