#include "xformers/profiler/c_api.h"

#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>

#include "xformers/kernels/base/check.h"
#include "xformers/profiler/analysis.h"
#include "xformers/profiler/report.h"

namespace xformers::profiler {
namespace {

using Json = nlohmann::json;

Json to_json(const DeviceLimit& limit) {
  return {{"name", limit.name},
          {"source", limit.source},
          {"sm", {limit.major, limit.minor}},
          {"bytes_per_second", limit.bytes_per_second},
          {"tflops",
           {{"float64", limit.f64},
            {"float32", limit.f32},
            {"float16", limit.f16},
            {"bfloat16", limit.bf16},
            {"float8", limit.fp8},
            {"int8", limit.int8}}}};
}

DeviceLimit to_limit(const Json& json) {
  DeviceLimit limit;
  limit.name = json.at("name");
  limit.source = json.value("source", "");
  limit.major = json.at("sm").at(0);
  limit.minor = json.at("sm").at(1);
  limit.bytes_per_second = json.value("bytes_per_second", 0.0);
  const Json tflops = json.value("tflops", Json::object());
  limit.f64 = tflops.value("float64", 0.0);
  limit.f32 = tflops.value("float32", 0.0);
  limit.f16 = tflops.value("float16", 0.0);
  limit.bf16 = tflops.value("bfloat16", 0.0);
  limit.fp8 = tflops.value("float8", 0.0);
  limit.int8 = tflops.value("int8", 0.0);
  return limit;
}

std::vector<DeviceLimit> to_limits(const Json& request) {
  std::vector<DeviceLimit> limits;
  for (const Json& row : request.value("limits", Json::array())) limits.push_back(to_limit(row));
  return limits;
}

Json cost(const Json& request) {
  const CostRule* rule = find_cost_rule(request.at("operator").get_ref<const std::string&>());
  if (!rule) return nullptr;
  std::vector<Argument> arguments;
  for (const Json& given : request.at("arguments")) {
    arguments.push_back({given.value("shapes", std::vector<Shape>{}), given.value("type", ""), given.value("value", ""),
                         given.value("numbers", std::vector<int64_t>{})});
  }
  const Cost result = cost_of(*rule, arguments);
  return {{"flops", result.flops}, {"bytes", result.bytes}, {"dtype", dtype_name(result.type)}};
}

Json rules() {
  Json rows = Json::array();
  for (const CostRule* rule : cost_rules()) {
    rows.push_back({{"name", rule->name},
                    {"arguments", rule->arguments},
                    {"backward", rule->backward},
                    {"multiplies", rule->kind == Kind::kProduct || rule->kind == Kind::kAttention}});
  }
  return rows;
}

Json analyze(const Json& request) {
  const Analysis analysis = request.contains("text") ? analyze_text(request["text"].get_ref<const std::string&>())
                                                     : profiler::analyze(request.at("trace").get<std::string>());
  Json steps = Json::array();
  for (const Step& step : analysis.steps) {
    Json parts;
    for (size_t i = 0; i < kParts; ++i) parts[kPartNames[i]] = step.parts[i];
    steps.push_back({{"name", step.name},
                     {"start_us", step.start},
                     {"duration_us", step.duration},
                     {"parts_us", parts},
                     {"hidden_communication_us", step.hidden_communication}});
  }
  Json operators = Json::array();
  for (const Work& work : analysis.operators) {
    operators.push_back({{"name", work.name},
                         {"dtype", work.type},
                         {"part", kPartNames[static_cast<size_t>(work.part)]},
                         {"calls", work.calls},
                         {"us", work.time},
                         {"flops", work.flops},
                         {"bytes", work.bytes}});
  }
  return {{"forward", analysis.operations.forward},
          {"backward", analysis.operations.backward},
          {"recomputed", analysis.operations.recomputed},
          {"total_time_s", analysis.total_time},
          {"on_gpu", analysis.on_gpu},
          {"steps", steps},
          {"operators", operators},
          {"peak_bytes", analysis.peak_bytes},
          {"events", analysis.info.events},
          {"rank", analysis.info.rank},
          {"problem", analysis.info.problem}};
}

Json utilization(const Json& request) {
  Operations operations;
  request.at("forward").get_to(operations.forward);
  request.at("backward").get_to(operations.backward);
  operations.recomputed = request.value("recomputed", operations.recomputed);
  const DeviceLimit limit = to_limit(request.at("limit"));
  const double seconds = request.at("seconds");
  const auto or_null = [](double share) { return share < 0 ? Json() : Json(share); };
  return {{"hfu", or_null(hardware_utilization(operations, seconds, limit))},
          {"mfu", or_null(model_utilization(operations, seconds, limit))}};
}

Json slowest(const Json& request) {
  const Slowest found = find_slowest(request.at("folder").get<std::string>());
  const auto rows = [&](const std::vector<Deviation>& deviations) {
    Json json = Json::array();
    for (const Deviation& row : deviations) {
      json.push_back({{"kernel", row.kernel},
                      {"deviation_s", row.deviation},
                      {"mean_s", row.mean},
                      {"slowest_rank", found.ranks[row.slowest].info.rank},
                      {"over_median_s", row.excess}});
    }
    return json;
  };
  Json late = Json::array();
  for (const Lateness& row : found.late)
    late.push_back({{"rank", found.ranks[row.rank].info.rank}, {"seconds", row.seconds}});
  return {{"text", describe(found)},
          {"computation", rows(found.computation)},
          {"communication", rows(found.communication)},
          {"late", late}};
}

Json answer(const Json& request) {
  const std::string function = request.at("function");
  if (function == "device_limits") {
    Json rows = Json::array();
    for (const DeviceLimit& limit : device_limits()) rows.push_back(to_json(limit));
    return rows;
  }
  if (function == "cost") return cost(request);
  if (function == "cost_rules") return rules();
  if (function == "analyze") return analyze(request);
  if (function == "utilization") return utilization(request);
  if (function == "find_slowest") return slowest(request);
  if (function == "report") return write_report(request.at("folder").get<std::string>(), to_limits(request)).string();
  fail({.where = "profiler", .name = "function", .got = function, .expected = "one of c_api.h", .fix = ""});
}

}  // namespace
}  // namespace xformers::profiler

char* xformers_profiler_call(const char* request) {
  using xformers::profiler::Json;
  Json reply;
  try {
    reply = {{"result", xformers::profiler::answer(Json::parse(request))}};
  } catch (const std::exception& error) {
    reply = {{"error", error.what()}};
  }
  const std::string text = reply.dump(-1, ' ', false, Json::error_handler_t::replace);
  char* result = static_cast<char*>(std::malloc(text.size() + 1));
  if (result) std::memcpy(result, text.c_str(), text.size() + 1);
  return result;
}

void xformers_profiler_free(char* result) { std::free(result); }
