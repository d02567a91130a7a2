#include "xformers/ops/context_parallel/context_parallel.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/context_parallel/attend.h"
#include "xformers/ops/context_parallel/heads.h"
#include "xformers/ops/context_parallel/predict.h"

namespace xformers::ops {
namespace {

using parallel::ContextPlan;
using parallel::ContextProblem;
using parallel::HeadShare;
using parallel::Range;
using parallel::Run;

constexpr char kContext[] = "context_parallel_attention";

std::vector<int64_t> integers(c10::SymIntArrayRef numbers) {
  std::vector<int64_t> result;
  for (const c10::SymInt& number : numbers) result.push_back(number.guard_int(__FILE__, __LINE__));
  return result;
}

std::vector<c10::SymInt> symbolic(const std::vector<int64_t>& numbers) { return {numbers.begin(), numbers.end()}; }

int64_t local_tokens(std::string_view group_name, c10::SymIntArrayRef numbers) {
  return Carrier(kContext, group_name, integers(numbers)).local_tokens();
}

void check_tokens(const Check& check, const char* name, const c10::SymInt& tokens, int64_t expected) {
  check.equal((std::string(name) + ", the number of tokens").c_str(), tokens, expected,
              "pass what shard() of the plan gave");
}

// ---- the operators ----
struct ContextAttention {
  static constexpr const char* kName = "context_parallel_attention_fwd";
  static constexpr const char* kResults[] = {"out", "lse", "lse_low"};
  using Result = AttentionResult;
  at::Tensor query, key, value;
  c10::SymIntArrayRef problem{};
  std::string_view process_group_name{};
  std::optional<double> scale{};

  static constexpr auto arguments() {
    using A = ContextAttention;
    return std::tuple{arg("query", &A::query),
                      arg("key", &A::key),
                      arg("value", &A::value),
                      arg("problem", &A::problem),
                      arg("process_group_name", &A::process_group_name).required(),
                      arg("scale", &A::scale)};
  }
  // As one call on this rank's tokens; the key's heads may be 1 for a group of query heads.
  AttentionArgs local() const {
    AttentionArgs args;
    args.query = query;
    args.key = with_heads_of(query, key);
    args.value = with_heads_of(query, value);
    args.scale = scale;
    args.need_lse = true;
    return args;
  }
  HeadShare share() const {
    const auto heads = [](const at::Tensor& x) {
      return (x.dim() == 5 ? x.sym_size(2) * x.sym_size(3) : x.sym_size(2)).guard_int(__FILE__, __LINE__);
    };
    return {heads(query), heads(key), ContextProblem::from_flat(integers(problem)).team_size};
  }
  void check() const {
    const Check check(kContext);
    if (query.dim() != 4 && query.dim() != 5) {
      check.fail("query", describe(query), "[batch, seqlen, (groups,) heads, head_dim]",
                 "add the dimensions that are missing");
    }
    const int64_t tokens = local_tokens(process_group_name, problem);
    check_tokens(check, "query.size(1)", query.sym_size(1), tokens);
    check_tokens(check, "key.size(1)", key.sym_size(1), tokens);
    check_tokens(check, "value.size(1)", value.sym_size(1), tokens);
    local().check();
    const HeadShare heads = share();
    if (heads.heads < heads.team_size) {
      check.fail("query", describe(query),
                 std::to_string(heads.team_size) + " heads or more, one for each rank of a team",
                 "plan with method 'ring' or 'all_gather', or with a smaller head_ranks");
    }
  }
  Result empty() const { return local().empty(); }
};

using ContextGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

struct ContextAttentionBackward : ContextAttention {
  static constexpr const char* kName = "context_parallel_attention_bwd";
  static constexpr const char* kResults[] = {"dq", "dk", "dv"};
  using Result = ContextGradients;
  at::Tensor grad_out, out, lse, lse_low;
  OptionalTensor grad_lse{};

  static constexpr auto arguments() {
    using A = ContextAttentionBackward;
    return std::tuple{arg("grad_out", &A::grad_out),
                      arg("query", &A::query),
                      arg("key", &A::key),
                      arg("value", &A::value),
                      arg("out", &A::out),
                      arg("lse", &A::lse),
                      arg("lse_low", &A::lse_low),
                      arg("problem", &A::problem),
                      arg("process_group_name", &A::process_group_name).required(),
                      arg("grad_lse", &A::grad_lse),
                      arg("scale", &A::scale)};
  }
  Result empty() const { return {empty_result(query), empty_result(key), empty_result(value)}; }
};

std::string signature_of(const ContextAttention& args) {
  // Numbers of tokens differ between ranks: the problem says them.
  std::string text = "(heads " + describe_shape(args.query.sym_sizes().slice(2)) + " and " +
                     describe_shape(args.key.sym_sizes().slice(2)) + " " + describe_dtype(args.query.scalar_type()) +
                     ", batch " + std::to_string(args.query.size(0)) + ", problem";
  for (const int64_t number : integers(args.problem)) text += " " + std::to_string(number);
  return text + ")";
}

// A call with the heads of this rank and the tokens of its team, and results back. With teams of one rank these are the
// same.
class Shared {
 public:
  Shared(const Carrier& carrier, const ContextAttention& args)
      : carrier_(carrier), share_(args.share()), member_(carrier.member()) {
    for (int64_t m = 0; m < share_.team_size; ++m) {
      queries_.push_back(share_.queries(m));
      keys_.push_back(share_.keys(m));
    }
  }

  at::Tensor queries(const at::Tensor& x) const {  // also results and their gradients
    return is_alone() ? x : grouped(carrier_.to_heads(kThere, flat(x), queries_));
  }
  at::Tensor keys(const at::Tensor& x) const {
    if (is_alone()) return x;
    const at::Tensor mine = carrier_.to_heads(kThere, flat(x), keys_);
    if (!is_shared()) return mine;
    return share_.is_even(member_) ? mine.unsqueeze(3) : mine.index_select(2, heads_of_queries(mine.device()));
  }
  at::Tensor lse(const at::Tensor& x) const {  // [batch, heads, tokens]
    if (is_alone()) return x;
    const at::Tensor rows =
        carrier_.to_heads(kThere, (x.dim() == 4 ? x.flatten(1, 2) : x).transpose(1, 2).unsqueeze(-1), queries_);
    const at::Tensor mine = rows.squeeze(-1).transpose(1, 2);
    return is_grouped() ? mine.unflatten(1, {keys_[member_].size(), queries_[member_].size() / keys_[member_].size()})
                        : mine;
  }

  at::Tensor queries_back(const at::Tensor& x, const at::Tensor& like) const {
    if (is_alone()) return x;
    return carrier_.from_heads(kBack, flat(x), queries_, share_.heads).view(like_heads(like, x.size(-1)));
  }
  at::Tensor keys_back(at::Tensor x, const at::Tensor& like) const {
    if (is_alone()) return x;
    if (is_shared() && share_.is_even(member_)) {
      x = x.squeeze(3);
    } else if (is_shared()) {
      std::vector<int64_t> sizes = x.sizes().vec();
      sizes[2] = keys_[member_].size();
      x = at::zeros(sizes, x.options()).index_add_(2, heads_of_queries(x.device()), x);
    }
    return carrier_.from_heads(kBack, x, keys_, share_.key_heads).view(like_heads(like, x.size(-1)));
  }
  at::Tensor lse_back(const at::Tensor& x, const at::Tensor& query) const {
    if (is_alone()) return x;
    const at::Tensor rows = (x.dim() == 4 ? x.flatten(1, 2) : x).transpose(1, 2).unsqueeze(-1);
    const at::Tensor all = carrier_.from_heads(kBack, rows, queries_, share_.heads).squeeze(-1).transpose(1, 2);
    return query.dim() == 5 ? all.unflatten(1, {query.size(2), query.size(3)}).contiguous() : all.contiguous();
  }

 private:
  static constexpr const char* kThere = "sending heads to the ranks of a team";
  static constexpr const char* kBack = "sending heads back to their tokens";

  bool is_alone() const { return share_.team_size == 1; }
  bool is_shared() const { return share_.heads != share_.key_heads; }
  bool is_grouped() const { return is_shared() && share_.is_even(member_); }
  static at::Tensor flat(const at::Tensor& x) { return x.dim() == 5 ? x.flatten(2, 3) : x; }
  at::Tensor grouped(const at::Tensor& x) const {
    return is_grouped() ? x.unflatten(2, {keys_[member_].size(), queries_[member_].size() / keys_[member_].size()}) : x;
  }
  // The key head, of those here, that each query head here reads.
  at::Tensor heads_of_queries(const at::Device& device) const {
    const auto options = at::TensorOptions().dtype(at::kLong).device(device);
    return at::arange(queries_[member_].begin, queries_[member_].end, options)
        .div(share_.heads / share_.key_heads, "floor")
        .sub(keys_[member_].begin);
  }
  static std::vector<int64_t> like_heads(const at::Tensor& like, int64_t width) {
    std::vector<int64_t> sizes = like.sizes().vec();
    sizes.back() = width;
    return sizes;
  }

  const Carrier& carrier_;
  const HeadShare share_;
  const int64_t member_;
  std::vector<Range> queries_, keys_;
};

AttentionResult context_forward(const ContextAttention& args) {
  args.check();
  const Carrier carrier(kContext, args.process_group_name, integers(args.problem));
  carrier.group.check_same_call(signature_of(args), args.query.device());
  const Shared shared(carrier, args);
  const TeamCall team{shared.queries(args.query), shared.keys(args.key), shared.keys(args.value), args.scale};
  const auto [out, lse, low] = attend(carrier, team);
  return {shared.queries_back(out, args.query), shared.lse_back(lse, args.query), shared.lse_back(low, args.query)};
}

ContextGradients context_backward(const ContextAttentionBackward& args) {
  args.check();
  const Carrier carrier(kContext, args.process_group_name, integers(args.problem));
  carrier.group.check_same_call(" backward" + signature_of(args), args.query.device());
  const Shared shared(carrier, args);
  TeamGradCall team{{shared.queries(args.query), shared.keys(args.key), shared.keys(args.value), args.scale},
                    shared.queries(args.grad_out),
                    shared.queries(args.out),
                    shared.lse(args.lse),
                    shared.lse(args.lse_low)};
  if (args.grad_lse) team.grad_lse = shared.lse(*args.grad_lse);
  const auto [dq, dk, dv] = attend_backward(carrier, team);
  const auto rounded = [](const at::Tensor& grad, const at::Tensor& like) {
    return grad.to(like.scalar_type()).contiguous();
  };
  return {shared.queries_back(dq, args.query).contiguous(), rounded(shared.keys_back(dk, args.key), args.key),
          rounded(shared.keys_back(dv, args.value), args.value)};
}

struct ContextKept {
  static constexpr const char* kNode = "XformersContextParallelAttentionBackward";
  at::Tensor query, key, value, out, lse, lse_low;
  std::vector<c10::SymInt> problem{};
  int64_t group = 0;
  std::optional<double> scale{};
  static constexpr auto members() {
    using K = ContextKept;
    return std::tuple{&K::query, &K::key, &K::value, &K::out, &K::lse, &K::lse_low, &K::problem, &K::group, &K::scale};
  }
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    ContextAttentionBackward args;
    args.query = query;
    args.key = key;
    args.value = value;
    args.problem = problem;
    args.process_group_name = group_of_number(group);
    args.scale = scale;
    args.grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    args.out = out;
    args.lse = lse;
    args.lse_low = lse_low;
    args.grad_lse = to_optional(grads[1]);
    const auto [dq, dk, dv] = call(args);
    return wanted.only(dq, dk, dv);
  }
};

AttentionResult context_autograd(const ContextAttention& args) {
  args.check();
  const auto node = record<ContextKept>(args.query, args.key, args.value);
  auto [out, lse, low] = below_autograd(args);
  if (!node) return {out, lse, low};
  out = with_history(std::move(out), node);
  lse = with_history(std::move(lse), node);
  node->keep({args.query, args.key, args.value, out, lse, low, args.problem.vec(),
              number_of_group(args.process_group_name), args.scale});
  return {out, lse, low};
}

// ---- sharding ----
template <bool kShards>
struct ContextRows {
  static constexpr const char* kName = kShards ? "context_shard" : "context_unshard";
  static constexpr const char* kNode = kShards ? "XformersContextShardBackward" : "XformersContextUnshardBackward";
  using Result = at::Tensor;
  at::Tensor x;
  c10::SymIntArrayRef problem{};
  std::string_view process_group_name{};
  int64_t dim = 1;

  static constexpr auto arguments() {
    using A = ContextRows;
    return std::tuple{arg("x", &A::x), arg("problem", &A::problem),
                      arg("process_group_name", &A::process_group_name).required(), arg("dim", &A::dim)};
  }
  int64_t axis() const { return dim < 0 ? dim + x.dim() : dim; }
  int64_t rows(bool local) const { return local ? local_tokens(process_group_name, problem) : integers(problem).at(0); }
  void check() const {
    const Check check(kName);
    if (axis() < 0 || axis() >= x.dim()) {
      check.fail("dim", std::to_string(dim), "a dimension of x, " + describe(x), "name the one of the sequence");
    }
    check_tokens(check, "x.size(dim)", x.sym_size(axis()), rows(!kShards));
  }
  at::Tensor empty() const {
    std::vector<c10::SymInt> sizes = x.sym_sizes().vec();
    sizes[axis()] = rows(kShards);
    return empty_result(sizes, x.options());
  }
};

// Rows [first, first + run.count) of one, the tokens of a run of the other.
at::Tensor tokens_of(const at::Tensor& whole, const Run& run, int64_t dim) {
  return whole.slice(dim, run.begin, run.token(run.count - 1) + 1, run.stride);
}

template <bool kShards>
at::Tensor move_context_rows(const ContextRows<kShards>& args) {
  args.check();
  const Carrier carrier(args.kName, args.process_group_name, integers(args.problem));
  const ContextPlan& plan = carrier.plan();
  at::Tensor out = args.empty();
  int64_t first = 0;
  if (kShards) {
    for (const Run& run : plan.tokens_of(carrier.group.rank)) {
      out.narrow(args.axis(), first, run.count).copy_(tokens_of(args.x, run, args.axis()));
      first += run.count;
    }
    return out;
  }
  const at::Tensor rows = args.x.movedim(args.axis(), 0).contiguous();
  std::vector<int64_t> receives, sends(carrier.group.size, rows.size(0));
  for (int64_t r = 0; r < carrier.group.size; ++r) receives.push_back(plan.rows_of(r).size());
  const at::Tensor all = carrier.exchange(
      "gathering tokens", carrier.group.size == 1 ? rows : at::cat(std::vector<at::Tensor>(carrier.group.size, rows)),
      receives, sends);
  for (int64_t r = 0; r < carrier.group.size; ++r) {
    for (const Run& run : plan.tokens_of(r)) {
      tokens_of(out.movedim(args.axis(), 0), run, 0).copy_(all.narrow(0, first, run.count));
      first += run.count;
    }
  }
  return out;
}

template <bool kShards>
struct ContextRowsKept {
  static constexpr const char* kNode = ContextRows<kShards>::kNode;
  std::vector<c10::SymInt> problem{};
  int64_t group = 0, dim = 1;
  static constexpr auto members() {
    using K = ContextRowsKept;
    return std::tuple{&K::problem, &K::group, &K::dim};
  }
  variable_list gradients(const variable_list& grads, const Wanted&) const {
    return {call(ContextRows<!kShards>{grads[0], problem, group_of_number(group), dim})};
  }
};

template <bool kShards>
at::Tensor context_rows_autograd(const ContextRows<kShards>& args) {
  args.check();
  const auto node = record<ContextRowsKept<kShards>>(args.x);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args.problem.vec(), number_of_group(args.process_group_name), args.dim});
  return out;
}

// ---- entry points ----
// Heads that `expand` repeats travel once.
at::Tensor narrowed(const at::Tensor& x) {
  return x.dim() == 5 && x.sym_size(3) > 1 && x.sym_stride(3) == 0 ? x.narrow(3, 0, 1) : x;
}

std::tuple<at::Tensor, at::Tensor> context_named(const at::Tensor& query, const at::Tensor& key,
                                                 const at::Tensor& value, c10::SymIntArrayRef problem,
                                                 std::string_view group, std::optional<double> scale) {
  const auto device = query.device().type();
  const auto cast = [&](const at::Tensor& x) {
    return at::autocast::is_autocast_enabled(device)
               ? at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device)
               : x;
  };
  const auto [out, lse, low] =
      call(ContextAttention{cast(query), cast(narrowed(key)), cast(narrowed(value)), problem, group, scale});
  return {out, lse};
}

// What Python's plan object shows: for every rank its visible area, rows and numbers that it receives, and its tokens
// as triples (begin, count, stride) behind their number.
std::vector<int64_t> describe_plan(at::IntArrayRef numbers, int64_t heads, int64_t key_heads, int64_t head_dim) {
  const ContextPlan plan(ContextProblem::from_flat(numbers.vec()));
  const HeadShare share{heads, key_heads, plan.problem.team_size};
  std::vector<int64_t> result;
  for (int64_t t = 0; t < plan.problem.teams(); ++t) {
    const parallel::TeamPlan team = plan.team(t);
    for (int64_t rank = t * share.team_size; rank < (t + 1) * share.team_size; ++rank) {
      const std::vector<Run> tokens = plan.tokens_of(rank);
      result.insert(result.end(),
                    {team.area(), team.rows_received(t), elements_received(plan, team, rank, share, head_dim),
                     static_cast<int64_t>(tokens.size())});
      for (const Run& run : tokens) result.insert(result.end(), {run.begin, run.count, run.stride});
    }
  }
  return result;
}

// The plan that is chosen, as numbers, and why: an empty layout or method is any, head_ranks 0 likewise.
std::tuple<std::vector<int64_t>, std::string> choose_plan(at::IntArrayRef numbers, std::string_view layout,
                                                          std::string_view method, int64_t head_ranks, int64_t heads,
                                                          int64_t key_heads, int64_t head_dim, bool is_cuda) {
  parallel::Wish wish{layout.empty(), method.empty()};
  wish.method = method;
  wish.head_ranks = head_ranks;
  if (!layout.empty()) wish.layout = parallel::layout_of(layout);
  const parallel::Workload workload{1, heads, key_heads, head_dim, is_cuda ? 2 : 4};
  const parallel::Chosen chosen =
      choose_context(ContextProblem::from_flat(numbers.vec()), wish, workload, parallel::machine_of(is_cuda));
  return {chosen.problem.flat(), chosen.explanation};
}

// (seconds, ideal, computing, bytes received, bytes of keys) of a plan, forward and then backward, as predict.h says
// them; workload and machine as their members.
std::vector<double> predict_plan(at::IntArrayRef problem, at::IntArrayRef workload, at::ArrayRef<double> machine) {
  const parallel::Workload of{workload.at(0), workload.at(1), workload.at(2), workload.at(3), workload.at(4)};
  const parallel::Machine on{static_cast<int64_t>(machine.at(0)),
                             machine.at(1),
                             machine.at(2),
                             machine.at(3),
                             machine.at(4),
                             machine.at(5),
                             machine.at(6)};
  const auto [forward, backward] = predict(ContextPlan(ContextProblem::from_flat(problem.vec())), of, on);
  std::vector<double> numbers;
  for (const parallel::Prediction& p : {forward, backward}) {
    numbers.insert(numbers.end(), {p.seconds, p.ideal_seconds, p.compute_seconds, p.bytes_received, p.key_bytes});
  }
  return numbers;
}

std::vector<double> machine_numbers(bool is_cuda) {
  const parallel::Machine m = parallel::machine_of(is_cuda);
  return {static_cast<double>(m.ranks_per_host),
          m.flops,
          m.link_bytes,
          m.network_bytes,
          m.link_latency,
          m.network_latency,
          m.call_seconds};
}

std::string plan_text(at::IntArrayRef problem) { return ContextPlan(ContextProblem::from_flat(problem.vec())).text(); }

}  // namespace

std::tuple<at::Tensor, at::Tensor> context_parallel_attention_with_lse(const at::Tensor& query, const at::Tensor& key,
                                                                       const at::Tensor& value,
                                                                       const ContextProblem& problem,
                                                                       const std::string& group,
                                                                       std::optional<double> scale) {
  return context_named(query, key, value, symbolic(problem.flat()), group, scale);
}

at::Tensor shard_context(const at::Tensor& x, const ContextProblem& problem, const std::string& group, int64_t dim) {
  return call(ContextRows<true>{x, symbolic(problem.flat()), group, dim});
}

at::Tensor unshard_context(const at::Tensor& x, const ContextProblem& problem, const std::string& group, int64_t dim) {
  return call(ContextRows<false>{x, symbolic(problem.flat()), group, dim});
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<ContextAttention, ContextAttentionBackward, ContextRows<true>, ContextRows<false>>(m);
  m.def(
      "context_parallel_attention(Tensor query, Tensor key, Tensor value, SymInt[] problem, str process_group_name, "
      "float? scale=None) -> (Tensor out, Tensor lse)",
      context_named);
  m.def("_context_plan(int[] problem, int heads, int key_heads, int head_dim) -> int[]", describe_plan);
  m.def(
      "_context_choose(int[] problem, str layout, str method, int head_ranks, int heads, int key_heads, int head_dim, "
      "bool is_cuda) -> (int[], str)",
      choose_plan);
  m.def("_context_predict(int[] problem, int[] workload, float[] machine) -> float[]", predict_plan);
  m.def("_context_machine(bool is_cuda) -> float[]", machine_numbers);
  m.def("_context_plan_text(int[] problem) -> str", plan_text);
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<context_forward>(m);
  implement<context_backward>(m);
  implement<move_context_rows<true>>(m);
  implement<move_context_rows<false>>(m);
}

TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<context_autograd>(m);
  implement<context_rows_autograd<true>>(m);
  implement<context_rows_autograd<false>>(m);
  implement_no_gradients<ContextAttentionBackward>(m);
}
