#include "xformers/profiler/report.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "xformers/kernels/base/check.h"
#include "xformers/profiler/facts.h"
#include "xformers/profiler/report_page.h"
#include "xformers/profiler/verdict.h"

namespace xformers::profiler {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kOperators = 40, kDeviations = 5;

struct Rank {
  Analysis analysis;
  Json facts;  // an object, empty where there are none
  RankTimes times;
};

double rounded(double value) { return std::round(value * 1000) / 1000; }
Json or_null(double value) { return value < 0 || !std::isfinite(value) ? Json() : Json(value); }

// Seconds of one step: measured where nothing traced it, else the traced one's own.
double step_seconds(const Rank& rank) {
  const double measured = rank.facts.value("step_time_s", 0.0);
  return measured > 0 ? measured : rank.analysis.average().duration * 1e-6;
}

size_t step_count(const Analysis& analysis) { return std::max<size_t>(analysis.steps.size(), 1); }

// ---- parts of the report ----
Json device_json(const Rank& rank, const DeviceLimit* limit) {
  const std::string name = rank.facts.value("device", rank.analysis.info.device);
  Json device{{"name", name.empty() ? "CPU" : name}};
  if (!limit) {
    device["note"] =
        "No limits are known for this device: shares of a peak are n/a. To add them: "
        "xformers.profiler.device_limits.add_device_limit(DeviceLimit(...)).";
    return device;
  }
  device["limits_of"] = limit->name;
  device["source"] = limit->source;
  device["bytes_per_second"] = limit->bytes_per_second;
  for (const char* dtype : {"float64", "float32", "float16", "bfloat16", "float8", "int8"}) {
    if (limit->tflops(dtype) > 0) device["tflops"][dtype] = limit->tflops(dtype);
  }
  return device;
}

Json operations_json(const Rank& rank, const DeviceLimit* limit) {
  const Operations& operations = rank.analysis.operations;
  const auto steps = static_cast<double>(step_count(rank.analysis));
  const double seconds = step_seconds(rank);
  Json json{{"step_time_s", seconds}, {"traced_step_time_s", rank.analysis.average().duration * 1e-6}};
  json["step_time_is_of"] =
      rank.facts.value("step_time_s", 0.0) > 0 ? "steps that were not traced" : "the traced steps";
  std::map<std::string, double> all;
  double forward = 0, backward = 0, recomputed = 0;
  for (const auto& [dtype, flops] : operations.forward) all[dtype] += flops / steps, forward += flops / steps;
  for (const auto& [dtype, flops] : operations.backward) all[dtype] += flops / steps, backward += flops / steps;
  for (const auto& [dtype, flops] : operations.recomputed) recomputed += flops / steps;
  json["forward"] = forward;
  json["backward"] = backward;
  json["recomputed"] = recomputed;
  json["hfu"] = or_null(limit ? hardware_utilization(operations, seconds * steps, *limit) : -1);
  json["mfu"] = or_null(limit ? model_utilization(operations, seconds * steps, *limit) : -1);
  json["dtypes"] = Json::array();
  for (const auto& [dtype, flops] : all) {
    const double peak = limit ? limit->tflops(dtype) * 1e12 : 0;
    json["dtypes"].push_back({{"dtype", dtype},
                              {"flops", flops},
                              {"tflops", seconds > 0 ? flops / seconds * 1e-12 : 0},
                              {"share_of_peak", or_null(peak > 0 && seconds > 0 ? flops / seconds / peak : -1)}});
  }
  return json;
}

// The larger of the two shares of the device's limits that this work reaches, and which one it is.
struct Reached {
  double share = -1;
  const char* limit = "n/a";
};
Reached reached(const Work& work, const DeviceLimit* limit) {
  if (!limit || work.time <= 0) return {};
  const double seconds = work.time * 1e-6, peak = limit->tflops(work.type) * 1e12;
  const double compute = peak > 0 ? work.flops / seconds / peak : 0;
  const double memory = limit->bytes_per_second > 0 ? work.bytes / seconds / limit->bytes_per_second : 0;
  if (compute <= 0 && memory <= 0) return {};
  return compute >= memory ? Reached{compute, "compute"} : Reached{memory, "bandwidth"};
}

double share_of_part(const Analysis& analysis, Part part, const DeviceLimit* limit) {
  double time = 0, ideal = 0;
  for (const Work& work : analysis.operators) {
    const double share = reached(work, limit).share;
    if (work.part != part || share < 0) continue;
    time += work.time;
    ideal += work.time * share;
  }
  return time > 0 ? ideal / time : -1;
}

Json operators_json(const Analysis& analysis, const DeviceLimit* limit) {
  Json rows = Json::array();
  const auto steps = static_cast<double>(step_count(analysis));
  const std::vector<Work>& works = analysis.operators.empty() ? analysis.kernels : analysis.operators;
  for (size_t i = 0; i < std::min(kOperators, works.size()); ++i) {
    const Work& work = works[i];
    const Reached best = reached(work, limit);
    const double seconds = work.time * 1e-6;
    rows.push_back({{"name", work.name},
                    {"part", kPartNames[static_cast<size_t>(work.part)]},
                    {"dtype", work.type},
                    {"calls", static_cast<double>(work.calls) / steps},
                    {"ms", rounded(work.time * 1e-3 / steps)},
                    {"flops", work.flops / steps},
                    {"bytes", work.bytes / steps},
                    {"tflops", seconds > 0 ? work.flops / seconds * 1e-12 : 0},
                    {"gbps", seconds > 0 ? work.bytes / seconds * 1e-9 : 0},
                    {"share_of_limit", or_null(best.share)},
                    {"limit", best.limit}});
  }
  return rows;
}

Json parts_json(const Step& step) {
  Json parts = Json::array();
  for (size_t i = 0; i < kParts; ++i) {
    parts.push_back({{"name", kPartNames[i]},
                     {"ms", rounded(step.parts[i] * 1e-3)},
                     {"share", step.duration > 0 ? step.parts[i] / step.duration : 0}});
  }
  return {{"ms", rounded(step.duration * 1e-3)},
          {"hidden_communication_ms", rounded(step.hidden_communication * 1e-3)},
          {"parts", parts}};
}

Json timeline_json(const Analysis& analysis) {
  if (analysis.steps.empty()) return nullptr;
  std::unordered_map<std::string, size_t> ids;
  Json names = Json::array(), spans = Json::array();
  int lanes = 0;
  for (const Span& span : analysis.timeline) {
    const auto [found, is_new] = ids.emplace(span.name, ids.size());
    if (is_new) names.push_back(span.name.substr(0, 160));
    lanes = std::max(lanes, span.lane + 1);
    spans.push_back(
        {rounded(span.start), rounded(span.duration), span.lane, static_cast<int>(span.part), found->second});
  }
  return {{"step", analysis.steps.back().name},
          {"us", rounded(analysis.steps.back().duration)},
          {"lanes", lanes},
          {"names", names},
          {"spans", spans}};  // start, duration (us), lane, part, name
}

Json memory_json(const Rank& rank) {
  Json memory = rank.facts.value("memory", Json::object());
  Json points = Json::array();
  for (const MemoryPoint& point : rank.analysis.memory) points.push_back({rounded(point.time * 1e-3), point.bytes});
  memory["points"] = points;  // ms, bytes
  if (!memory.contains("peak_bytes")) memory["peak_bytes"] = rank.analysis.peak_bytes;
  return memory;
}

Json deviations_json(const std::vector<Deviation>& rows, const std::vector<RankTimes>& ranks) {
  Json json = Json::array();
  for (size_t i = 0; i < std::min(kDeviations, rows.size()); ++i) {
    const Deviation& row = rows[i];
    json.push_back({{"kernel", row.kernel},
                    {"deviation_ms", rounded(row.deviation * 1e3)},
                    {"mean_ms", rounded(row.mean * 1e3)},
                    {"slowest_rank", ranks[row.slowest].info.rank >= 0 ? ranks[row.slowest].info.rank : row.slowest},
                    {"over_median_ms", rounded(row.excess * 1e3)}});
  }
  return json;
}

// A rank is marked where what it does beyond the median is more than a twentieth of the step.
constexpr double kMarked = 0.05;

Json ranks_json(const std::vector<Rank>& ranks, const Slowest& slowest) {
  Json rows = Json::array();
  std::vector<double> late(ranks.size()), excess(ranks.size());
  for (const Lateness& row : slowest.late) late[row.rank] = row.seconds;
  for (const Deviation& row : slowest.computation) excess[row.slowest] += std::max(row.excess, 0.0);
  for (size_t i = 0; i < ranks.size(); ++i) {
    const Analysis& analysis = ranks[i].analysis;
    const Step step = analysis.average();
    const auto steps = static_cast<double>(step_count(analysis));
    const double beyond = std::max(late[i], excess[i]) / steps;
    rows.push_back({{"rank", analysis.info.rank >= 0 ? analysis.info.rank : static_cast<int>(i)},
                    {"trace", fs::path(analysis.info.path).filename().string()},
                    {"step_ms", rounded(step.duration * 1e-3)},
                    {"communication_ms", rounded(slowest.ranks[i].communication * 1e3 / steps)},
                    {"late_ms", rounded(late[i] * 1e3 / steps)},
                    {"slow_kernels_ms", rounded(excess[i] * 1e3 / steps)},
                    {"peak_bytes", ranks[i].facts.value("/memory/peak_bytes"_json_pointer, analysis.peak_bytes)},
                    {"straggler", ranks.size() > 1 && beyond * 1e6 > kMarked * step.duration},
                    {"problem", analysis.info.problem}});
  }
  return rows;
}

std::string now() {
  const std::time_t time = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M", std::localtime(&time));
  return text;
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.flush();
  if (!file) {
    fail({.where = "report",
          .name = path.string(),
          .got = "not writable",
          .expected = "a file in a folder with space left",
          .fix = "free space or pass another folder"});
  }
}

}  // namespace

std::string report_json(const fs::path& folder, const std::vector<DeviceLimit>& more_limits) {
  const std::vector<fs::path> traces = find_traces(folder);
  std::vector<Rank> ranks(traces.size());
  for_each_parallel(traces.size(), default_threads(), [&](size_t i) {
    ranks[i].analysis = analyze(traces[i]);
    ranks[i].facts = Json::parse(facts_text(traces[i]));
    ranks[i].times = rank_times(ranks[i].analysis);
    if (ranks[i].analysis.info.rank < 0) ranks[i].analysis.info.rank = ranks[i].facts.value("rank", -1);
    ranks[i].times.info.rank = ranks[i].analysis.info.rank;
    if (i > 0) ranks[i].analysis.timeline = {}, ranks[i].analysis.memory = {};
  });
  std::vector<std::string> problems;
  for (const Rank& rank : ranks) {
    if (!rank.analysis.info.problem.empty()) problems.push_back(rank.analysis.info.problem);
  }
  std::erase_if(ranks, [](const Rank& rank) { return rank.analysis.info.events == 0; });
  if (ranks.empty()) {
    fail({.where = "report",
          .name = folder.string(),
          .got = problems.empty() ? "a folder without traces" : "a folder of unreadable traces (" + problems[0] + ")",
          .expected = "*trace.json.gz or *.json in it, or in one of its folders",
          .fix = "pass the output_dir of xformers.profiler.profile, or a folder in it"});
  }
  std::stable_sort(ranks.begin(), ranks.end(),
                   [](const Rank& a, const Rank& b) { return a.analysis.info.rank < b.analysis.info.rank; });

  std::vector<RankTimes> times;
  for (Rank& rank : ranks) times.push_back(std::move(rank.times));
  const Slowest slowest = compare_ranks(std::move(times));
  const auto shown =
      std::find_if(ranks.begin(), ranks.end(), [](const Rank& r) { return !r.analysis.timeline.empty(); });
  const Rank& rank = shown == ranks.end() ? ranks[0] : *shown;

  std::vector<DeviceLimit> limits = more_limits;
  limits.insert(limits.end(), device_limits().begin(), device_limits().end());
  const TraceInfo& info = rank.analysis.info;
  const DeviceLimit* limit =
      find_device_limit(limits, rank.facts.value("device", info.device), rank.facts.value("major", info.major),
                        rank.facts.value("minor", info.minor));

  Judged judged{rank.analysis.average(), rank.analysis.on_gpu};
  judged.products_share = share_of_part(rank.analysis, Part::kProducts, limit);
  judged.attention_share = share_of_part(rank.analysis, Part::kAttention, limit);
  judged.bandwidth_share = share_of_part(rank.analysis, Part::kOtherCompute, limit);
  if (ranks.size() > 1) {
    judged.ranks = &slowest;
    const double steps = static_cast<double>(step_count(rank.analysis));
    if (!slowest.computation.empty()) judged.slowest_over_median = slowest.computation[0].excess / steps;
  }

  Json report{{"created", now()}, {"ranks_read", ranks.size()}, {"verdict", verdict(judged)}};
  report["device"] = device_json(rank, limit);
  report["operations"] = operations_json(rank, limit);
  report["step"] = parts_json(judged.step);
  report["on_gpu"] = rank.analysis.on_gpu;
  report["operators"] = operators_json(rank.analysis, limit);
  report["timeline"] = timeline_json(rank.analysis);
  report["memory"] = memory_json(rank);
  report["ranks"] = ranks_json(ranks, slowest);
  report["slowest"] = {{"computation", deviations_json(slowest.computation, slowest.ranks)},
                       {"communication", deviations_json(slowest.communication, slowest.ranks)}};
  report["notes"] = rank.facts.value("notes", Json::array());
  for (const std::string& problem : problems) report["notes"].push_back(problem + ".");
  report["traces"] = Json::array();
  for (const Rank& each : ranks) {
    std::error_code ignored;
    report["traces"].push_back(fs::relative(each.analysis.info.path, folder, ignored).generic_string());
  }
  return report.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string report_html(const std::string& json) {
  std::string safe;  // inside of a script element, "</" would end it
  for (size_t i = 0; i < json.size(); ++i) {
    safe += json[i];
    if (json[i] == '<') safe.replace(safe.size() - 1, 1, "\\u003c");
  }
  std::string page(kReportPage);
  const std::string mark = "REPORT_DATA";
  page.replace(page.find(mark), mark.size(), safe);
  return page;
}

fs::path write_report(const fs::path& folder, const std::vector<DeviceLimit>& limits) {
  const std::string json = report_json(folder, limits);
  write(folder / "report.json", json);
  write(folder / "report.html", report_html(json));
  return folder / "report.html";
}

}  // namespace xformers::profiler
