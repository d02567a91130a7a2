#include "xformers/profiler/analysis.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <limits>
#include <unordered_map>

#include "xformers/profiler/facts.h"

namespace xformers::profiler {
namespace {

constexpr size_t kTimelineSpans = 2500, kMemoryPoints = 1200;

struct Operator {
  double start, end;
  int thread, name;
  int64_t external_id, sequence;
  bool linked;  // to a forward thread
  const CostRule* rule;
  Cost cost;
  // found by nest():
  int parent = -1,
      counted = -1;  // the operator around it; the outermost one around it that multiplies, itself included
  bool in_backward = false, in_autograd = false;
  double children = 0;  // time of those inside
};

struct Kernel {
  double start, end;
  int thread, name;
  int64_t correlation, external_id;
  Part part;
};

bool contains(std::string_view text, std::string_view word) {
  const auto same = [](char a, char b) { return std::tolower(static_cast<unsigned char>(a)) == b; };
  return std::search(text.begin(), text.end(), word.begin(), word.end(), same) != text.end();
}

bool contains_any(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(), [&](std::string_view word) { return contains(text, word); });
}

Part part_of_kind(Kind kind) {
  switch (kind) {
    case Kind::kProduct: return Part::kProducts;
    case Kind::kAttention: return Part::kAttention;
    case Kind::kCopy: return Part::kCopies;
    default: return Part::kOtherCompute;
  }
}

struct Interval {
  double start, end;
  Part part;
  int name, thread;
};

using PackedCalls = std::map<std::string, std::vector<Lengths>>;

class Analyzer {
 public:
  explicit Analyzer(PackedCalls packed = {}) : packed_(std::move(packed)) {}

  void take(const TraceEvent& event) {
    if (event.name == "[memory]") {
      if (event.total_allocated >= 0)
        memory_.push_back({event.start, static_cast<double>(event.total_allocated), event.device});
    } else if (event.category == "kernel" || event.category == "gpu_memcpy" || event.category == "gpu_memset") {
      const Part part = part_of_name(event.name);
      kernels_.push_back(
          {event.start, event.end(), event.thread, name_id(event.name), event.correlation, event.external_id, part});
    } else if (event.category == "cuda_runtime" || event.category == "cuda_driver") {
      if (event.correlation >= 0) launched_at_[event.correlation] = event.end();
    } else if (event.category == "cpu_op") {
      const CostRule* rule = find_cost_rule(event.name);
      operators_.push_back({event.start, event.end(), event.thread, name_id(event.name), event.external_id,
                            event.sequence, event.forward_thread > 0, rule,
                            rule ? cost_of(*rule, event.arguments) : Cost{}});
      if (rule && rule->kind == Kind::kAttention && !packed_.empty() && takes_lengths(*rule, event.arguments)) {
        waiting_.push_back({operators_.back().start, operators_.size() - 1, event.arguments});
      }
    } else if (event.name.starts_with("ProfilerStep#")) {
      (event.category == "gpu_user_annotation" ? gpu_steps_ : cpu_steps_)
          .push_back({event.name, event.start, event.duration, {}, 0});
    }
  }

  Analysis finish(TraceInfo info) {
    Analysis result;
    result.info = std::move(info);
    result.on_gpu = !kernels_.empty();
    count_packed();
    nest();
    count_operations(result);
    gather_operators(result);
    gather_kernels(result);
    const std::vector<Interval> busy = intervals(result.on_gpu);
    divide_steps(result, busy);
    draw_timeline(result, busy);
    gather_memory(result);
    return result;
  }

 private:
  int name_id(const std::string& name) {
    const auto [found, is_new] = ids_.emplace(name, static_cast<int>(names_.size()));
    if (is_new) names_.push_back(name);
    return found->second;
  }

  // ---- packed sequences: the i-th call of an operator in the trace is the i-th whose lengths were remembered ----
  static constexpr std::string_view kLengths[] = {"cu_seqlens_q", "cu_seqlens_k", "seqused_k", "seqlen_k"};

  static bool takes_lengths(const CostRule& rule, const std::vector<Argument>& arguments) {
    const Call call(rule.arguments, arguments);
    return std::any_of(std::begin(kLengths), std::end(kLengths), [&](auto name) { return call.has_tensor(name); });
  }

  void count_packed() {
    std::sort(waiting_.begin(), waiting_.end(), [](const Waiting& a, const Waiting& b) { return a.start < b.start; });
    std::unordered_map<std::string, size_t> reached;
    for (Waiting& call : waiting_) {
      Operator& op = operators_[call.index];
      const std::string& name = names_[op.name];
      const auto known = packed_.find(name);
      const size_t which = reached[name]++;
      if (known == packed_.end() || which >= known->second.size()) continue;
      for (const auto& [argument, numbers] : known->second[which]) {
        const int position = position_of(op.rule->arguments, argument);
        if (position >= 0 && position < static_cast<int>(call.arguments.size())) {
          call.arguments[static_cast<size_t>(position)].numbers = numbers;
        }
      }
      op.cost = cost_of(*op.rule, call.arguments);
    }
  }

  // Operators by thread and start, the outer before the inner; parents; what is part of the backward pass.
  void nest() {
    std::sort(operators_.begin(), operators_.end(), [](const Operator& a, const Operator& b) {
      if (a.thread != b.thread) return a.thread < b.thread;
      return a.start != b.start ? a.start < b.start : a.end > b.end;
    });
    for (size_t begin = 0; begin < operators_.size();) {
      size_t end = begin;
      while (end < operators_.size() && operators_[end].thread == operators_[begin].thread) ++end;
      nest_thread(static_cast<int>(begin), static_cast<int>(end));
      begin = end;
    }
  }

  void nest_thread(int begin, int end) {
    bool has_linked = false, has_forward = false;
    for (int i = begin, open = -1; i < end; ++i) {
      Operator& op = operators_[i];
      while (open >= 0 && operators_[open].end < op.end) open = operators_[open].parent;
      op.parent = open;
      const Operator* outer = open >= 0 ? &operators_[open] : nullptr;
      op.counted = outer && outer->counted >= 0 ? outer->counted : op.cost.flops > 0 ? i : -1;
      op.in_backward = op.linked || (outer && outer->in_backward);
      // Inside of a linked event, an operator with a number of its own was recorded for autograd.
      op.in_autograd = !op.linked && (op.sequence >= 0 || (outer && outer->in_autograd));
      if (op.linked) op.in_autograd = false;
      if (outer) operators_[open].children += op.end - op.start;
      has_linked = has_linked || op.linked;
      has_forward = has_forward || (!op.in_backward && op.sequence >= 0);
      open = i;
    }
    if (has_linked && !has_forward) {
      for (int i = begin; i < end; ++i) operators_[i].in_backward = true;
    }
  }

  void count_operations(Analysis& result) const {
    double first = std::numeric_limits<double>::infinity(), last = -first;
    for (size_t i = 0; i < operators_.size(); ++i) {
      const Operator& op = operators_[i];
      if (op.counted != static_cast<int>(i)) continue;
      const std::string dtype = dtype_name(op.cost.type);
      const auto flops = static_cast<double>(op.cost.flops);
      if (op.rule->backward || op.in_backward) {
        result.operations.backward[dtype] += flops;
        if (!op.rule->backward && op.in_autograd) result.operations.recomputed[dtype] += flops;
      } else {
        result.operations.forward[dtype] += flops;
      }
      first = std::min(first, op.start);
      last = std::max(last, op.end);
    }
    for (const Kernel& kernel : kernels_) {
      if (&kernel == kernels_.data()) first = kernel.start, last = kernel.end;
      first = std::min(first, kernel.start);
      last = std::max(last, kernel.end);
    }
    result.total_time = last > first ? (last - first) * 1e-6 : 0;
  }

  // Time of an operator that counts: all of it; of another: what isn't spent in operators inside. On a GPU: of its
  // kernels.
  void gather_operators(Analysis& result) {
    std::vector<double> times(operators_.size());
    if (!result.on_gpu) {
      for (size_t i = 0; i < operators_.size(); ++i) {
        const Operator& op = operators_[i];
        if (op.counted == static_cast<int>(i)) times[i] = op.end - op.start;
        if (op.counted < 0) times[i] = std::max(op.end - op.start - op.children, 0.0);
      }
    } else {
      std::unordered_map<int64_t, int> by_id;
      for (size_t i = 0; i < operators_.size(); ++i) by_id.emplace(operators_[i].external_id, static_cast<int>(i));
      for (Kernel& kernel : kernels_) {
        const auto found = kernel.external_id >= 0 ? by_id.find(kernel.external_id) : by_id.end();
        if (found == by_id.end()) continue;
        const Operator& op = operators_[found->second];
        const int owner = op.counted >= 0 ? op.counted : found->second;
        times[owner] += kernel.end - kernel.start;
        // What an operator launches is what the operator is, unless its name says that it only moves data.
        const CostRule* rule = operators_[owner].rule;
        if (rule && rule->kind != Kind::kOther && rule->kind != Kind::kCopy && kernel.part == Part::kOtherCompute) {
          kernel.part = part_of_kind(rule->kind);
        }
      }
    }
    std::unordered_map<int, Work> by_name;
    for (size_t i = 0; i < operators_.size(); ++i) {
      const Operator& op = operators_[i];
      if (times[i] <= 0 && op.counted != static_cast<int>(i)) continue;
      Work& work = by_name[op.name];
      work.part = part_of_operator(op);
      work.calls += 1;
      work.time += times[i];
      work.flops += static_cast<double>(op.cost.flops);
      work.bytes += static_cast<double>(op.cost.bytes);
      if (work.type.empty()) work.type = dtype_name(op.cost.type);
    }
    result.operators = sorted(by_name);
  }

  Part part_of_operator(const Operator& op) const {
    return op.rule ? part_of_kind(op.rule->kind) : part_of_name(names_[op.name]);
  }

  void gather_kernels(Analysis& result) {
    std::sort(kernels_.begin(), kernels_.end(), [](const Kernel& a, const Kernel& b) { return a.start < b.start; });
    std::unordered_map<int, Work> by_name;
    for (const Kernel& kernel : kernels_) {
      Work& work = by_name[kernel.name];
      work.part = kernel.part;
      work.calls += 1;
      work.time += kernel.end - kernel.start;
      if (kernel.part == Part::kCommunication)
        result.collectives.push_back(static_cast<float>(kernel.end - kernel.start));
    }
    result.kernels = sorted(by_name);
  }

  std::vector<Work> sorted(std::unordered_map<int, Work>& by_name) const {
    std::vector<Work> works;
    for (auto& [name, work] : by_name) {
      work.name = names_[name];
      works.push_back(std::move(work));
    }
    std::sort(works.begin(), works.end(),
              [](const Work& a, const Work& b) { return a.time != b.time ? a.time > b.time : a.name < b.name; });
    return works;
  }

  // What is busy when. On the CPU: each operator where no other runs inside of it, as part of the one that counts.
  std::vector<Interval> intervals(bool on_gpu) const {
    std::vector<Interval> result;
    if (on_gpu) {
      for (const Kernel& kernel : kernels_) {
        result.push_back({kernel.start, kernel.end, kernel.part, kernel.name, kernel.thread});
      }
      return result;
    }
    std::vector<double> reached;  // up to where an operator has been handed out
    const auto hand_out = [&](size_t i, double end) {
      const Operator& op = operators_[i];
      const bool is_engine = op.counted < 0 && names_[op.name].starts_with("autograd::engine");
      if (end > reached[i] && !is_engine) {
        const Operator& owner = op.counted >= 0 ? operators_[op.counted] : op;
        result.push_back({reached[i], end, part_of_operator(owner), owner.name, owner.thread});
      }
    };
    for (const Operator& op : operators_) reached.push_back(op.start);
    for (const Operator& op : operators_) {
      if (op.parent < 0) continue;
      hand_out(static_cast<size_t>(op.parent), op.start);
      reached[op.parent] = std::max(reached[op.parent], op.end);
    }
    for (size_t i = 0; i < operators_.size(); ++i) hand_out(i, operators_[i].end);
    return result;
  }

  void find_steps(Analysis& result, const std::vector<Interval>& busy) const {
    const bool by_gpu = result.on_gpu && !gpu_steps_.empty();
    result.steps = by_gpu ? gpu_steps_ : cpu_steps_;
    std::sort(result.steps.begin(), result.steps.end(), [](const Step& a, const Step& b) { return a.start < b.start; });
    double first = std::numeric_limits<double>::infinity(), last = -first;
    for (const Interval& interval : busy) {
      first = std::min(first, interval.start);
      last = std::max(last, interval.end);
    }
    if (result.steps.empty() && last > first) result.steps.push_back({"the whole trace", first, last - first, {}, 0});
    if (!result.on_gpu || result.steps.empty()) return;
    // A GPU works on a step until it begins the next.
    for (size_t i = 0; i + 1 < result.steps.size(); ++i) {
      result.steps[i].duration = result.steps[i + 1].start - result.steps[i].start;
    }
    Step& end = result.steps.back();
    end.duration = std::max(end.duration, last - end.start);
  }

  void divide_steps(Analysis& result, const std::vector<Interval>& busy) const {
    find_steps(result, busy);
    struct Edge {
      double time;
      int change, part;
      int kernel;  // that begins here, else -1
    };
    std::vector<Edge> edges;
    edges.reserve(2 * busy.size());
    for (size_t i = 0; i < busy.size(); ++i) {
      const int part = static_cast<int>(busy[i].part);
      edges.push_back({busy[i].start, 1, part, static_cast<int>(i)});
      edges.push_back({busy[i].end, -1, part, -1});
    }
    std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.time < b.time; });
    size_t step = 0;
    std::array<int, kParts> active{};
    double at = edges.empty() ? 0 : edges[0].time;
    const auto charge = [&](double from, double to, Part part, bool hides) {  // split over the steps
      for (size_t i = step; i < result.steps.size(); ++i) {
        Step& s = result.steps[i];
        const double inside = std::min(to, s.start + s.duration) - std::max(from, s.start);
        if (inside > 0) {
          s.parts[static_cast<size_t>(part)] += inside;
          if (hides) s.hidden_communication += inside;
        }
        if (s.start > to) break;
      }
    };
    for (const Edge& edge : edges) {
      while (step < result.steps.size() && result.steps[step].start + result.steps[step].duration <= at) ++step;
      if (edge.time > at) {
        const auto found = std::find_if(active.begin(), active.end(), [](int count) { return count > 0; });
        if (found != active.end()) {
          const auto part = static_cast<Part>(found - active.begin());
          charge(at, edge.time, part,
                 part < Part::kCommunication && active[static_cast<size_t>(Part::kCommunication)] > 0);
        } else if (result.on_gpu) {
          // Idle: the host's fault until the launch of what comes next had returned.
          double launched = at;
          if (edge.kernel >= 0) {
            const auto known = launched_at_.find(kernels_[edge.kernel].correlation);
            if (known != launched_at_.end()) launched = std::clamp(known->second, at, edge.time);
          }
          charge(at, launched, Part::kIdleHost, false);
        }
        at = edge.time;
      }
      active[static_cast<size_t>(edge.part)] += edge.change;
    }
    for (Step& s : result.steps) {  // what is left, before the first event and after the last too
      double used = 0;
      for (double part : s.parts) used += part;
      const Part rest = result.on_gpu ? Part::kIdleOther : Part::kIdleHost;  // the CPU between operators: Python
      s.parts[static_cast<size_t>(rest)] += std::max(s.duration - used, 0.0);
    }
  }

  void draw_timeline(Analysis& result, const std::vector<Interval>& busy) const {
    if (result.steps.empty()) return;
    const Step& step = result.steps.back();
    std::unordered_map<int, int> lanes;
    for (const Interval& span : busy) {
      if (span.end <= step.start || span.start >= step.start + step.duration) continue;
      const int lane = lanes.emplace(span.thread, static_cast<int>(lanes.size())).first->second;
      result.timeline.push_back({names_[span.name], span.part, lane, span.start - step.start, span.end - span.start});
    }
    if (result.timeline.size() > kTimelineSpans) {
      const auto longer = [](const Span& a, const Span& b) { return a.duration > b.duration; };
      std::nth_element(result.timeline.begin(), result.timeline.begin() + kTimelineSpans, result.timeline.end(),
                       longer);
      result.timeline.resize(kTimelineSpans);
    }
    std::sort(result.timeline.begin(), result.timeline.end(),
              [](const Span& a, const Span& b) { return a.start < b.start; });
  }

  void gather_memory(Analysis& result) {
    // A GPU's where there is one, else the CPU's. At most so many points, each the highest of its share.
    int64_t device = -1;
    for (const Allocated& point : memory_) device = std::max(device, point.device);
    std::vector<MemoryPoint> points;
    for (const Allocated& point : memory_) {
      if (point.device == device) points.push_back({point.time, point.bytes});
    }
    std::sort(points.begin(), points.end(), [](const MemoryPoint& a, const MemoryPoint& b) { return a.time < b.time; });
    const size_t share = points.size() / kMemoryPoints + 1;
    for (size_t i = 0; i < points.size(); i += share) {
      const auto end = points.begin() + std::min(i + share, points.size());
      result.memory.push_back(*std::max_element(
          points.begin() + i, end, [](const MemoryPoint& a, const MemoryPoint& b) { return a.bytes < b.bytes; }));
      result.peak_bytes = std::max(result.peak_bytes, result.memory.back().bytes);
    }
    for (MemoryPoint& point : result.memory) point.time -= points[0].time;
  }

  struct Allocated {
    double time, bytes;
    int64_t device;
  };
  struct Waiting {  // a call of packed sequences, whose lengths the trace doesn't hold
    double start;
    size_t index;
    std::vector<Argument> arguments;
  };
  PackedCalls packed_;
  std::vector<Waiting> waiting_;
  std::vector<Operator> operators_;
  std::vector<Kernel> kernels_;
  std::vector<Step> cpu_steps_, gpu_steps_;
  std::vector<Allocated> memory_;
  std::unordered_map<int64_t, double> launched_at_;
  std::unordered_map<std::string, int> ids_;
  std::vector<std::string> names_;
};

double utilization(const std::map<std::string, double>& flops, double seconds, const DeviceLimit& limit) {
  double share = 0;
  bool known = false;
  for (const auto& [dtype, count] : flops) {
    const double peak = limit.tflops(dtype) * 1e12;
    if (peak > 0) share += count / peak;
    known = known || peak > 0;
  }
  return known && seconds > 0 ? share / seconds : -1;
}

}  // namespace

bool is_communication(std::string_view name) {
  return contains_any(name, {"nccl", "gloo:", "c10d::", "memcpy ptop", "xformers_peer"});
}

Part part_of_name(std::string_view name) {
  if (is_communication(name)) return Part::kCommunication;
  if (contains_any(name, {"memcpy", "memset", "aten::copy_", "aten::_to_copy"})) return Part::kCopies;
  if (contains_any(name, {"attention", "flash_fwd", "flash_bwd", "fmha"})) return Part::kAttention;
  if (contains_any(name, {"gemm", "cublas", "xmma", "nvjet", "cutlass", "wgrad", "dgrad", "conv2d"}))
    return Part::kProducts;
  return Part::kOtherCompute;
}

std::string dtype_name(std::string_view type) {
  if (type == "double") return "float64";
  if (type == "float") return "float32";
  if (type == "c10::Half" || type == "c10::BFloat16") return "float16";
  if (type.starts_with("c10::Float8")) return "float8";
  if (type == "signed char" || type == "unsigned char") return "int8";
  return "unknown";
}

Step Analysis::average() const {
  Step mean{"mean of " + std::to_string(steps.size()) + " steps"};
  const double share = 1.0 / std::max<size_t>(steps.size(), 1);
  for (const Step& step : steps) {
    mean.duration += share * step.duration;
    mean.hidden_communication += share * step.hidden_communication;
    for (size_t i = 0; i < kParts; ++i) mean.parts[i] += share * step.parts[i];
  }
  return mean;
}

Analysis analyze(const std::filesystem::path& path) {
  Analyzer analyzer(packed_calls(path));
  TraceInfo info = read_trace(path, [&](const TraceEvent& event) { analyzer.take(event); });
  return analyzer.finish(std::move(info));
}

Analysis analyze_text(std::string_view trace) {
  Analyzer analyzer;
  TraceInfo info = read_trace_text(trace, [&](const TraceEvent& event) { analyzer.take(event); });
  return analyzer.finish(std::move(info));
}

double hardware_utilization(const Operations& operations, double seconds, const DeviceLimit& limit) {
  std::map<std::string, double> all = operations.forward;
  for (const auto& [dtype, flops] : operations.backward) all[dtype] += flops;
  return utilization(all, seconds, limit);
}

// A model's own work is its forward and backward pass: at most three forward passes, and nothing that is done again.
double model_utilization(const Operations& operations, double seconds, const DeviceLimit& limit) {
  const auto of = [](const std::map<std::string, double>& flops, const std::string& dtype) {
    const auto found = flops.find(dtype);
    return found == flops.end() ? 0.0 : found->second;
  };
  std::map<std::string, double> model = operations.forward;
  for (const auto& [dtype, flops] : operations.backward) {
    const double forward = of(operations.forward, dtype);
    model[dtype] = std::min(3 * forward, forward + flops - of(operations.recomputed, dtype));
  }
  return utilization(model, seconds, limit);
}

}  // namespace xformers::profiler
