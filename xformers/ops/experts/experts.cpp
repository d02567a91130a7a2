// Rows to the experts and back, and the layers of all experts: made of LibTorch's operators, the same on every device.
#include "xformers/ops/experts/experts.h"

#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding_bag.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "xformers/ops/bias_act_dropout/bias_act_dropout.h"
#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/common/random.h"
#include "xformers/ops/experts/experts_op.h"
#include "xformers/ops/sequence_parallel/process_group.h"

namespace xformers::ops {
namespace {

void check_rows(const Check& check, const at::Tensor& tokens, const at::Tensor& slots) {
  check.dims("tokens", tokens, 1, "[rows]");
  check.dims("slots", slots, 2, "[tokens, choices]");
  check.equal("tokens.size", tokens.sym_size(0), slots.sym_numel(), "both come from one call of route_top_k");
}

}  // namespace

void ExpertsGather::check() const {
  const Check check(kName);
  check.floating("x", x);
  check.dims("x", x, 2, "[tokens, dim]");
  check_rows(check, tokens, slots);
  check.equal("x.size(0)", x.sym_size(0), slots.sym_size(0), "one row per token");
}

void ExpertsCombine::check() const {
  const Check check(kName);
  check.floating("y", y);
  check.dims("y", y, 2, "[rows, dim]");
  check_rows(check, tokens, slots);
  check.equal("y.size(0)", y.sym_size(0), tokens.sym_size(0), "one row per choice");
  if (weights) check.shape("weights", *weights, slots.sym_sizes(), "one per choice");
}

void ExpertsMlp::check() const {
  const Check check("experts_mlp");
  check.floating("x", x);
  check.dims("x", x, 2, "[rows, dim]");
  const size_t experts = w1.size();
  if (experts == 0) check.fail("w1", "an empty list", "one weight per expert", "give the layer experts");
  check.shape("counts", counts, {static_cast<int64_t>(experts)}, "one number of rows per expert");
  if (counts.scalar_type() != at::kLong) {
    check.fail("counts.dtype", describe_dtype(counts.scalar_type()), "int64", "convert it with .long()");
  }
  const auto each = [&](const char* name, at::TensorList list, bool may_be_empty, c10::SymIntArrayRef shape) {
    if (list.empty() && may_be_empty) return;
    if (list.size() != experts) {
      check.fail(name, std::to_string(list.size()) + " tensors", std::to_string(experts) + ", one per expert",
                 "all experts have the same layers");
    }
    for (const at::Tensor& t : list) {
      check.shape(name, t, shape, "all experts have the same sizes");
      check.same_device(name, t, x, "x");
    }
  };
  const c10::SymInt hidden = w1[0].sym_size(0);
  each("w1", w1, false, {hidden, x.sym_size(1)});
  each("b1", b1, true, {hidden});
  each("w2", w2, false, {w2.empty() ? c10::SymInt(0) : w2[0].sym_size(0), hidden});
  each("b2", b2, true, {w2[0].sym_size(0)});
  to_activation("experts_mlp", activation);
  check_dropout(check, p, philox_state, x, "x");
}

namespace {

at::Tensor experts_gather_rows(const ExpertsGather& args) {
  args.check();
  return args.x.index_select(0, args.tokens);
}

at::Tensor experts_combine_rows(const ExpertsCombine& args) {
  args.check();
  const auto& [y, tokens, slots, weights] = args;
  const int64_t k = slots.size(1);
  if (y.scalar_type() == compute_dtype(y) && y.numel() > 0) {  // one pass
    const at::Tensor bags = at::arange(0, slots.numel(), k, slots.options());
    return std::get<0>(
        at::embedding_bag(y, slots.reshape(-1), bags, /*scale_grad_by_freq=*/false, /*mode=*/0, /*sparse=*/false,
                          weights ? OptionalTensor(weights->to(y.scalar_type()).reshape(-1)) : std::nullopt));
  }
  at::Tensor sum = at::zeros({slots.size(0), y.size(1)}, y.options().dtype(compute_dtype(y)));
  for (int64_t i = 0; i < k; ++i) {
    const at::Tensor rows = y.index_select(0, slots.select(1, i));
    weights ? sum.addcmul_(rows.to(sum.scalar_type()), weights->narrow(1, i, 1).to(sum.scalar_type())) : sum.add_(rows);
  }
  return sum.to(y.scalar_type());
}

ExpertsCombineBackward::Result combine_backward(const ExpertsCombineBackward& args) {
  const auto& [grad_out, y, tokens, slots, weights, need_dy, need_dweights] = args;
  at::Tensor grads = grad_out.index_select(0, tokens);  // [rows, dim]
  const at::Tensor rows = slots.reshape(-1);
  at::Tensor dweights = at::empty({0}, weights.options()), dy = at::empty({0}, y.options());
  if (need_dweights) {
    const at::Tensor dots = at::sum(grads * y, {1}, /*keepdim=*/false, weights.scalar_type());
    dweights = dots.index_select(0, rows).view(slots.sizes());
  }
  if (need_dy) {
    at::Tensor by_row = at::empty({rows.size(0)}, weights.options());
    by_row.scatter_(0, rows, weights.reshape(-1));
    dy = grads.mul_(by_row.unsqueeze(1));
  }
  return {dy, dweights};
}

// A stream of its own for each expert.
OptionalTensor state_of(const OptionalTensor& state, int64_t expert) {
  return state ? OptionalTensor(*state + expert * 0x1e3779b97f4a7c15) : std::nullopt;
}

OptionalTensor of_expert(at::TensorList list, size_t expert) {
  return list.empty() ? std::nullopt : OptionalTensor(list[expert]);
}

// fn(expert, first row, rows) for each expert that has rows; returns the end of the last one.
template <class Fn>
int64_t for_each_expert(const ExpertsMlp& args, const Fn& fn) {
  const at::Tensor counts = args.counts.to(at::kCPU).contiguous();
  const auto* rows = counts.const_data_ptr<int64_t>();
  int64_t first = 0;
  for (size_t expert = 0; expert < args.w1.size(); ++expert) {
    if (rows[expert] < 0 || first + rows[expert] > args.x.size(0)) {
      Check("experts_mlp")
          .fail("counts", "[" + std::to_string(rows[expert]) + "] for expert " + std::to_string(expert),
                "counts that add up to at most " + std::to_string(args.x.size(0)) + " rows",
                "pass those of route_top_k");
    }
    if (rows[expert] > 0) fn(expert, first, rows[expert]);
    first += rows[expert];
  }
  return first;
}

ExpertsMlpForward::Result experts_forward(const ExpertsMlpForward& args) {
  args.check();
  auto [out, z] = args.empty();
  const int64_t end = for_each_expert(args, [&, &out = out, &z = z](size_t e, int64_t first, int64_t rows) {
    at::Tensor z_rows = z.narrow(0, first, rows), out_rows = out.narrow(0, first, rows);
    at::mm_out(z_rows, args.x.narrow(0, first, rows), args.w1[e].t());
    const at::Tensor h = call(BiasActDropout{z_rows, of_expert(args.b1, e), std::nullopt, args.activation, args.p,
                                             state_of(args.philox_state, static_cast<int64_t>(e))});
    const OptionalTensor b2 = of_expert(args.b2, e);
    b2 ? at::addmm_out(out_rows, b2->to(h.scalar_type()), h, args.w2[e].t()) : at::mm_out(out_rows, h, args.w2[e].t());
  });
  out.narrow(0, end, out.size(0) - end).zero_();
  return {out, z};
}

at::Tensor experts_inner(const ExpertsMlp& args) { return std::get<0>(call(ExpertsMlpForward{args})); }

ExpertsMlpBackward::Result experts_backward(const ExpertsMlpBackward& args) {
  const size_t experts = args.w1.size();
  std::vector<at::Tensor> result = args.empty();
  at::Tensor& dx = result[0];
  const size_t at_b1 = 1 + experts, at_w2 = at_b1 + args.b1.size(), at_b2 = at_w2 + experts;
  const int64_t end = for_each_expert(args, [&](size_t e, int64_t first, int64_t rows) {
    const at::Tensor grad = args.grad_out.narrow(0, first, rows), z = args.z.narrow(0, first, rows);
    const OptionalTensor b1 = of_expert(args.b1, e), state = state_of(args.philox_state, static_cast<int64_t>(e));
    if (!args.b2.empty()) result[at_b2 + e] = grad.sum(0).to(args.b2[e].scalar_type());
    at::mm_out(result[at_w2 + e], grad.t(), call(BiasActDropout{z, b1, std::nullopt, args.activation, args.p, state}));
    at::Tensor dz = at::mm(grad, args.w2[e]);
    const at::Tensor db1 =
        call(BiasActDropoutBackwardInplace{{dz, z, b1, args.activation, args.p, state, true, !args.b1.empty()}});
    if (!args.b1.empty()) result[at_b1 + e] = db1;
    at::mm_out(result[1 + e], dz.t(), args.x.narrow(0, first, rows));
    at::Tensor dx_rows = dx.narrow(0, first, rows);
    at::mm_out(dx_rows, dz, args.w1[e]);
  });
  dx.narrow(0, end, dx.size(0) - end).zero_();
  const at::Tensor counts = args.counts.to(at::kCPU);
  for (size_t e = 0; e < experts; ++e) {
    if (counts.const_data_ptr<int64_t>()[e] > 0) continue;  // without rows: zeros
    for (size_t i : {1 + e, at_w2 + e}) result[i].zero_();
    if (!args.b1.empty()) result[at_b1 + e].zero_();
    if (!args.b2.empty()) result[at_b2 + e].zero_();
  }
  return result;
}

struct ExpertsGatherKept {
  static constexpr const char* kNode = "XformersExpertsGatherBackward";
  at::Tensor tokens, slots;
  static constexpr auto members() { return std::tuple{&ExpertsGatherKept::tokens, &ExpertsGatherKept::slots}; }
  variable_list gradients(const variable_list& grads, const Wanted&) const {
    return {call(ExpertsCombine{grads[0].contiguous(), tokens, slots})};
  }
};

at::Tensor gather_autograd(const ExpertsGather& args) {
  args.check();
  const auto node = record<ExpertsGatherKept>(args.x);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args.tokens, args.slots});
  return out;
}

struct ExpertsCombineKept {
  static constexpr const char* kNode = "XformersExpertsCombineBackward";
  at::Tensor y, tokens, slots;
  OptionalTensor weights{};
  static constexpr auto members() {
    using K = ExpertsCombineKept;
    return std::tuple{&K::y, &K::tokens, &K::slots, &K::weights};
  }

  // Of y and weights.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    if (!weights) return {call(ExpertsGather{grads[0], tokens, slots}), at::Tensor()};
    const auto [dy, dweights] =
        call(ExpertsCombineBackward{grads[0], y, tokens, slots, *weights, wanted[0], wanted[1]});
    return wanted.only(dy, dweights);
  }
};

at::Tensor combine_autograd(const ExpertsCombine& args) {
  args.check();
  const auto node = record<ExpertsCombineKept>(args.y, args.weights);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({args.y, args.tokens, args.slots, args.weights});
  return out;
}

struct ExpertsMlpKept {
  static constexpr const char* kNode = "XformersExpertsMlpBackward";
  at::Tensor x, counts, z;
  std::vector<at::Tensor> w1, b1, w2, b2;
  int64_t activation = 0;
  double p = 0;
  OptionalTensor philox_state{};
  static constexpr auto members() {
    using K = ExpertsMlpKept;
    return std::tuple{&K::x,  &K::counts, &K::z,          &K::w1, &K::b1,
                      &K::w2, &K::b2,     &K::activation, &K::p,  &K::philox_state};
  }

  // Of x, w1, b1, w2, b2.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    variable_list result = call(
        ExpertsMlpBackward{{x, counts, w1, b1, w2, b2, name_of(static_cast<Activation>(activation)), p, philox_state},
                           grads[0].contiguous(),
                           z});
    for (size_t i = 0; i < result.size(); ++i) {
      if (!wanted[i]) result[i] = at::Tensor();
    }
    return result;
  }
};

at::Tensor experts_autograd(const ExpertsMlp& args) {
  args.check();
  const auto node = record<ExpertsMlpKept>(args.x, args.w1, args.b1, args.w2, args.b2);
  if (!node) return below_autograd(args);
  auto [out, z] = below_autograd(ExpertsMlpForward{args});
  node->keep({args.x, args.counts, z, args.w1.vec(), args.b1.vec(), args.w2.vec(), args.b2.vec(),
              static_cast<int64_t>(to_activation("experts_mlp", args.activation)), args.p, args.philox_state});
  return with_history(std::move(out), node);
}

}  // namespace

at::Tensor experts_gather(const at::Tensor& x, const at::Tensor& tokens, const at::Tensor& slots) {
  return call(ExpertsGather{x, tokens, slots});
}

at::Tensor experts_combine(const at::Tensor& y, const at::Tensor& tokens, const at::Tensor& slots,
                           const OptionalTensor& weights) {
  return call(ExpertsCombine{y, tokens, slots, weights});
}

at::Tensor experts_mlp(const at::Tensor& x_arg, const at::Tensor& counts, at::TensorList w1_arg, at::TensorList b1,
                       at::TensorList w2_arg, at::TensorList b2, Activation activation, double p) {
  check_probability(Check("experts_mlp"), p);
  const c10::DeviceType device = x_arg.device().type();
  at::Tensor x = x_arg;
  std::vector<at::Tensor> w1 = w1_arg.vec(), w2 = w2_arg.vec();
  if (at::autocast::is_autocast_enabled(device)) {
    const auto cast = [&](at::Tensor& t) {
      t = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
    };
    cast(x);
    std::for_each(w1.begin(), w1.end(), cast);
    std::for_each(w2.begin(), w2.end(), cast);
  }
  const at::Tensor out =
      call(ExpertsMlp{x, counts, w1, b1, w2, b2, name_of(activation), p, draw_dropout_state(p, x.device())});
  return p > 0 ? fused_dropout(out, p) : out;
}

namespace {

using Splits = std::vector<c10::SymInt>;

at::Tensor exchange(const at::Tensor& x, const Splits& output_splits, const Splits& input_splits,
                    const std::string& group);

struct ExchangeKept {
  static constexpr const char* kNode = "XformersExchangeRowsBackward";
  Splits output_splits, input_splits;
  int64_t group = 0;
  static constexpr auto members() {
    using K = ExchangeKept;
    return std::tuple{&K::output_splits, &K::input_splits, &K::group};
  }

  variable_list gradients(const variable_list& grads, const Wanted& /*wanted*/) const {
    return {exchange(grads[0], input_splits, output_splits, std::string(group_of_number(group)))};
  }
};

// The collective knows nothing of autograd: its node is ours.
at::Tensor exchange(const at::Tensor& x, const Splits& output_splits, const Splits& input_splits,
                    const std::string& group) {
  // Called with boxed arguments: releases of torch differ in how these operators take the name.
  const auto call_named = [](const char* name, torch::jit::Stack stack) {
    c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
    return stack.at(0).toTensor();
  };
  const auto node = record<ExchangeKept>(x);
  at::Tensor out;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const at::Tensor sent =
        call_named("_c10d_functional::all_to_all_single",
                   {x.contiguous(), c10::SymIntArrayRef(output_splits), c10::SymIntArrayRef(input_splits), group});
    out = call_named("_c10d_functional::wait_tensor", {sent});
  }
  out = with_history(std::move(out), node);
  if (node) node->keep({output_splits, input_splits, number_of_group(group)});
  return out;
}

}  // namespace

at::Tensor exchange_rows(const at::Tensor& x, at::IntArrayRef output_splits, at::IntArrayRef input_splits,
                         const std::string& group) {
  return exchange(x, {output_splits.begin(), output_splits.end()}, {input_splits.begin(), input_splits.end()}, group);
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> places_of(const at::Tensor& choices, int64_t num_experts,
                                                                     std::optional<int64_t> capacity) {
  ExpertPlaces places = expert_places(choices, num_experts, capacity);
  return {places.tokens, places.slots, places.counts, places.kept};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> routes_of(
    const at::Tensor& logits, int64_t k, std::optional<int64_t> capacity, const OptionalTensor& noise) {
  ExpertRoutes routes = route_top_k(logits, k, capacity, noise);
  return {routes.choices,       routes.weights,      routes.aux_loss,
          routes.places.tokens, routes.places.slots, routes.places.counts};
}

at::Tensor experts_mlp_by_name(const at::Tensor& x, const at::Tensor& counts, at::TensorList w1, at::TensorList b1,
                               at::TensorList w2, at::TensorList b2, ActivationName activation, double p) {
  return experts_mlp(x, counts, w1, b1, w2, b2, to_activation("experts_mlp", activation), p);
}

at::Tensor exchange_rows_of(const at::Tensor& x, c10::SymIntArrayRef output_splits, c10::SymIntArrayRef input_splits,
                            std::string_view group) {
  return exchange(x, output_splits.vec(), input_splits.vec(), std::string(group));
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<ExpertsGather, ExpertsCombine, ExpertsCombineBackward, ExpertsMlp, ExpertsMlpForward, ExpertsMlpBackward>(m);
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "expert_places(Tensor choices, int num_experts, int? capacity=None) -> (Tensor tokens, Tensor slots, "
      "Tensor counts, Tensor kept)",
      tags);
  m.def(
      "route_top_k(Tensor logits, int k=2, int? capacity=None, Tensor? noise=None) -> (Tensor choices, "
      "Tensor weights, Tensor aux_loss, Tensor tokens, Tensor slots, Tensor counts)",
      tags);
  m.def(
      "experts_mlp(Tensor x, Tensor counts, Tensor[] w1, Tensor[] b1, Tensor[] w2, Tensor[] b2, "
      "str? activation=None, float p=0.0) -> Tensor",
      tags);
  m.def("exchange_rows(Tensor x, SymInt[] output_splits, SymInt[] input_splits, str group) -> Tensor");
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  implement<experts_gather_rows>(m);
  implement<experts_combine_rows>(m);
  implement<combine_backward>(m);
  implement<experts_inner>(m);
  implement<experts_forward>(m);
  implement<experts_backward>(m);
}
TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::ops;
  implement<gather_autograd>(m);
  implement<combine_autograd>(m);
  implement<experts_autograd>(m);
  implement_no_gradients<ExpertsCombineBackward, ExpertsMlpForward, ExpertsMlpBackward>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("expert_places", xformers::ops::places_of);
  m.impl("route_top_k", xformers::ops::routes_of);
  m.impl("experts_mlp", xformers::ops::experts_mlp_by_name);
  m.impl("exchange_rows", xformers::ops::exchange_rows_of);
}
