#include "xformers/ops/context_parallel/context_parallel.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <memory>
#include <mutex>

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/sequence_parallel/process_group.h"

namespace xformers::ops {
namespace {

using parallel::ContextPlan;
using parallel::ContextProblem;
using parallel::Piece;
using parallel::Range;
using parallel::RankPlan;

constexpr char kContext[] = "context_parallel_attention";

std::vector<int64_t> integers(c10::SymIntArrayRef numbers) {
  std::vector<int64_t> result;
  for (const c10::SymInt& number : numbers) result.push_back(number.expect_int());
  return result;
}

std::vector<c10::SymInt> symbolic(const std::vector<int64_t>& numbers) { return {numbers.begin(), numbers.end()}; }

// The last plan is kept: the layers of a model, forward and backward, ask for the same.
std::shared_ptr<const ContextPlan> plan_of(const std::vector<int64_t>& numbers) {
  static std::mutex mutex;
  static auto* last = new std::shared_ptr<const ContextPlan>();
  const ContextProblem problem = ContextProblem::from_flat(numbers);
  const std::lock_guard<std::mutex> lock(mutex);
  if (!*last || (*last)->problem != problem) *last = std::make_shared<const ContextPlan>(plan_context(problem));
  return *last;
}

// A plan as one rank of a group carries it out. Rows are [tokens, ...] here, contiguous.
struct Carrier {
  Carrier(const char* operation, std::string_view group_name, c10::SymIntArrayRef numbers)
      : group(operation, group_name), plan(plan_of(integers(numbers))), mine(plan->ranks.at(group.rank)) {
    if (plan->problem.ranks != group.size) {
      Check(operation).fail("the plan's number of ranks", std::to_string(plan->problem.ranks),
                            std::to_string(group.size) + ", that of group '" + group.name + "'",
                            "plan with the group that you call with");
    }
  }

  static int64_t rows_of(const std::vector<Range>& ranges) {
    int64_t rows = 0;
    for (const Range& range : ranges) rows += range.size();
    return rows;
  }
  // Where a token lies among those of rising or local ranges.
  static int64_t place(const std::vector<Range>& ranges, int64_t token) {
    int64_t before = 0;
    for (const Range& range : ranges) {
      if (token >= range.begin && token < range.end) return before + token - range.begin;
      before += range.size();
    }
    throw Error(std::string(kContext) + ": a plan names a token that nobody holds");
  }

  std::vector<int64_t> counts(bool sending) const {
    std::vector<int64_t> result;
    for (int64_t r = 0; r < group.size; ++r) {
      result.push_back(rows_of(sending ? plan->sent(group.rank, r) : plan->sent(r, group.rank)));
    }
    return result;
  }

  // Local rows to those that are needed here, in the order of tokens.
  at::Tensor to_needed(const char* step, const at::Tensor& rows) const {
    std::vector<at::Tensor> parts{rows.narrow(0, 0, 0)};
    for (int64_t to = 0; to < group.size; ++to) {
      for (const Range& r : plan->sent(group.rank, to))
        parts.push_back(rows.narrow(0, place(mine.owned, r.begin), r.size()));
    }
    const at::Tensor arrived = exchange(step, at::cat(parts), counts(false), counts(true));
    std::vector<int64_t> sizes = rows.sizes().vec();
    sizes[0] = rows_of(mine.needed);
    const at::Tensor result = at::empty(sizes, rows.options());
    int64_t first = 0;
    for (int64_t from = 0; from < group.size; ++from) {
      for (const Range& r : plan->sent(from, group.rank)) {
        result.narrow(0, place(mine.needed, r.begin), r.size()).copy_(arrived.narrow(0, first, r.size()));
        first += r.size();
      }
    }
    return result;
  }

  // The adjoint: rows of what is needed here, added up where they are owned, in the order of ranks.
  at::Tensor from_needed(const char* step, const at::Tensor& rows) const {
    std::vector<at::Tensor> parts{rows.narrow(0, 0, 0)};
    for (int64_t to = 0; to < group.size; ++to) {
      for (const Range& r : plan->sent(to, group.rank))
        parts.push_back(rows.narrow(0, place(mine.needed, r.begin), r.size()));
    }
    const at::Tensor arrived = exchange(step, at::cat(parts), counts(true), counts(false));
    std::vector<int64_t> sizes = rows.sizes().vec();
    sizes[0] = mine.tokens();
    const at::Tensor result = at::zeros(sizes, rows.options());
    int64_t first = 0;
    for (int64_t from = 0; from < group.size; ++from) {
      for (const Range& r : plan->sent(group.rank, from)) {
        result.narrow(0, place(mine.owned, r.begin), r.size()).add_(arrived.narrow(0, first, r.size()));
        first += r.size();
      }
    }
    return result;
  }

  at::Tensor exchange(const char* step, const at::Tensor& rows, const std::vector<int64_t>& receives,
                      const std::vector<int64_t>& sends) const {
    if (group.size == 1) return rows;
    const at::Tensor arrived = group.start_exchange_rows(step, rows, receives, sends);
    group.wait(step, arrived);
    return arrived;
  }

  Group group;
  std::shared_ptr<const ContextPlan> plan;
  const RankPlan& mine;
};

int64_t local_tokens(std::string_view group_name, c10::SymIntArrayRef numbers) {
  return Carrier(kContext, group_name, numbers).mine.tokens();
}

// Keys of this rank's tokens as rows, and back.
at::Tensor as_rows(const at::Tensor& x) { return x.transpose(0, 1).contiguous(); }

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
    args.key = widened(key);
    args.value = widened(value);
    args.scale = scale;
    args.need_lse = true;
    return args;
  }
  at::Tensor widened(const at::Tensor& x) const {
    if (query.dim() != 5 || x.dim() != 5 || x.sym_size(3) != 1) return x;
    std::vector<c10::SymInt> sizes = x.sym_sizes().vec();
    sizes[3] = query.sym_size(3);
    return x.expand_symint(sizes);
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

// Keys and values that are needed here, [batch, needed, ...].
std::pair<at::Tensor, at::Tensor> needed_keys(const Carrier& carrier, const ContextAttention& args) {
  constexpr const char* kStep = "sending keys and values";
  const at::Tensor k = carrier.to_needed(kStep, as_rows(args.key)), v = carrier.to_needed(kStep, as_rows(args.value));
  return {args.widened(k.transpose(0, 1)), args.widened(v.transpose(0, 1))};
}

AttentionArgs call_of(const Carrier& carrier, const Piece& piece, const ContextAttention& args, const at::Tensor& k,
                      const at::Tensor& v) {
  AttentionArgs call;
  const int64_t first = Carrier::place(carrier.mine.needed, piece.keys.begin);
  call.query = args.query.narrow(1, Carrier::place(carrier.mine.owned, piece.queries.begin), piece.queries.size());
  call.key = k.narrow(1, first, piece.keys.size());
  call.value = v.narrow(1, first, piece.keys.size());
  call.window_left = piece.window_left;
  call.window_right = piece.window_right;
  call.bottom_right = true;
  call.scale = args.scale;
  call.need_lse = true;
  return call;
}

AttentionResult context_forward(const ContextAttention& args) {
  args.check();
  const Carrier carrier(kContext, args.process_group_name, args.problem);
  carrier.group.check_same_call(signature_of(args), args.query.device());
  const auto [k, v] = needed_keys(carrier, args);
  std::vector<at::Tensor> outs, lses, lows;
  for (const Piece& piece : carrier.mine.pieces) {
    auto [out, lse, low] = call(call_of(carrier, piece, args, k, v));
    outs.push_back(std::move(out));
    lses.push_back(std::move(lse));
    lows.push_back(std::move(low));
  }
  if (outs.empty()) return args.empty();
  if (outs.size() == 1) return {outs[0], lses[0], lows[0]};
  return {at::cat(outs, 1), at::cat(lses, -1), at::cat(lows, -1)};
}

// On CPUs gradients of pieces are computed in the dtype of their sums, so that they are rounded once; GPUs round those
// of each piece, since their kernels for wide elements take several times as long.
ContextGradients context_backward(const ContextAttentionBackward& args) {
  constexpr const char* kStep = "adding up the gradients of keys and values";
  args.check();
  const Carrier carrier(kContext, args.process_group_name, args.problem);
  carrier.group.check_same_call(" backward" + signature_of(args), args.query.device());
  const at::ScalarType sum_type = compute_dtype(args.query);
  const auto widened = [&](const at::Tensor& t) { return t.is_cpu() ? t.to(sum_type) : t; };
  const auto needed = needed_keys(carrier, args);
  const at::Tensor k = widened(needed.first), v = widened(needed.second);
  auto [dq, unused_dk, unused_dv] = args.empty();
  const at::Tensor dk = at::zeros(k.sizes(), k.options().dtype(sum_type)),
                   dv = at::zeros(v.sizes(), v.options().dtype(sum_type));
  for (const Piece& piece : carrier.mine.pieces) {
    const int64_t row = Carrier::place(carrier.mine.owned, piece.queries.begin), rows = piece.queries.size();
    const int64_t first = Carrier::place(carrier.mine.needed, piece.keys.begin), keys = piece.keys.size();
    AttentionGradArgs grad;
    static_cast<AttentionArgs&>(grad) = call_of(carrier, piece, args, k, v);
    grad.query = widened(grad.query);
    grad.grad_out = widened(args.grad_out.narrow(1, row, rows));
    grad.out = widened(args.out.narrow(1, row, rows));
    grad.lse = args.lse.narrow(-1, row, rows);
    if (args.lse_low.sizes() == args.lse.sizes()) grad.lse_low = args.lse_low.narrow(-1, row, rows);
    if (args.grad_lse) grad.grad_lse = args.grad_lse->narrow(-1, row, rows);
    const AttentionGradients gradients = call(grad);
    dq.narrow(1, row, rows).copy_(std::get<0>(gradients));
    dk.narrow(1, first, keys).add_(std::get<1>(gradients));
    dv.narrow(1, first, keys).add_(std::get<2>(gradients));
  }
  const auto home = [&](at::Tensor grad, const at::Tensor& like) {
    if (grad.dim() == 5 && like.size(3) == 1 && grad.size(3) > 1) grad = grad.sum(3, /*keepdim=*/true);
    return carrier.from_needed(kStep, as_rows(grad)).transpose(0, 1).to(like.scalar_type()).contiguous();
  };
  return {std::move(dq), home(dk, args.key), home(dv, args.value)};
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

template <bool kShards>
at::Tensor move_context_rows(const ContextRows<kShards>& args) {
  args.check();
  const Carrier carrier(args.kName, args.process_group_name, args.problem);
  at::Tensor out = args.empty();
  if (kShards) {
    int64_t first = 0;
    for (const Range& range : carrier.mine.owned) {
      out.narrow(args.axis(), first, range.size()).copy_(args.x.narrow(args.axis(), range.begin, range.size()));
      first += range.size();
    }
    return out;
  }
  const at::Tensor rows = args.x.movedim(args.axis(), 0).contiguous();
  std::vector<int64_t> receives, sends(carrier.group.size, rows.size(0));
  for (const RankPlan& rank : carrier.plan->ranks) receives.push_back(rank.tokens());
  const at::Tensor all = carrier.exchange(
      "gathering tokens", carrier.group.size == 1 ? rows : at::cat(std::vector<at::Tensor>(carrier.group.size, rows)),
      receives, sends);
  int64_t first = 0;
  for (const RankPlan& rank : carrier.plan->ranks) {
    for (const Range& range : rank.owned) {
      out.movedim(args.axis(), 0).narrow(0, range.begin, range.size()).copy_(all.narrow(0, first, range.size()));
      first += range.size();
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

// What Python's plan object shows: for every rank its tokens as pairs (begin, end) behind their number, visible area
// and rows that it receives.
std::vector<int64_t> describe_plan(at::IntArrayRef problem) {
  const std::shared_ptr<const ContextPlan> plan = plan_of(problem.vec());
  std::vector<int64_t> numbers;
  for (size_t r = 0; r < plan->ranks.size(); ++r) {
    const RankPlan& rank = plan->ranks[r];
    numbers.insert(numbers.end(), {rank.area(), plan->rows_received(static_cast<int64_t>(r)),
                                   static_cast<int64_t>(rank.owned.size())});
    for (const Range& range : rank.owned) numbers.insert(numbers.end(), {range.begin, range.end});
  }
  return numbers;
}

int64_t best_context_layout(at::IntArrayRef problem) {
  return static_cast<int64_t>(best_layout(ContextProblem::from_flat(problem.vec())));
}

std::string plan_text(at::IntArrayRef problem) { return plan_of(problem.vec())->text(); }

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
  m.def("_context_plan(int[] problem) -> int[]", describe_plan);
  m.def("_context_layout(int[] problem) -> int", best_context_layout);
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
