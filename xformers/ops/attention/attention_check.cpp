#include "xformers/ops/attention/attention_check.h"

#include <string>

#include "xformers/ops/common/dropout.h"

namespace xformers::ops {
namespace {

constexpr const char* kLayouts =
    "use [batch, seqlen, heads, head_dim], [batch, seqlen, head_dim] or [batch, seqlen, groups, heads, head_dim]";

void check_layout(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  const int64_t ndim = args.query.dim();
  if (ndim < 3 || ndim > 5) check.fail("query.ndim", std::to_string(ndim), "3, 4 or 5", kLayouts);
  for (const auto& [name, tensor] : {std::pair{"key.ndim", &args.key}, std::pair{"value.ndim", &args.value}}) {
    if (tensor->dim() != ndim) {
      check.fail(name, std::to_string(tensor->dim()), std::to_string(ndim) + " like the query's", kLayouts);
    }
  }
}

void check_sizes(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  constexpr const char* kExpand = "sizes are not broadcast; repeat with tensor.expand(...), which copies nothing";
  const auto q = args.query.sym_sizes(), k = args.key.sym_sizes(), v = args.value.sym_sizes();
  const size_t ndim = q.size();
  check.equal("key.batch", k[0], q[0], kExpand);
  check.equal("value.batch", v[0], q[0], kExpand);
  check.equal("value.seqlen", v[1], k[1], "key and value describe the same positions");
  for (size_t dim = 2; dim + 1 < ndim; ++dim) {
    const bool groups = ndim == 5 && dim == 2;
    check.equal(groups ? "key.groups" : "key.heads", k[dim], q[dim], kExpand);
    check.equal(groups ? "value.groups" : "value.heads", v[dim], q[dim], kExpand);
  }
  if (!is_quantized(args)) {
    check.equal("key.head_dim", k[ndim - 1], q[ndim - 1], "only value may have its own head_dim");
  }
  constexpr const char* kEmptyHead = "give every head at least one element";
  if (q[ndim - 1] == 0) check.fail("query.head_dim", "0", "1 or more", kEmptyHead);
  if (v[ndim - 1] == 0) check.fail("value.head_dim", "0", "1 or more", kEmptyHead);
}

void check_dtypes(const AttentionArgs& args) {
  if (is_quantized(args)) return;
  const at::ScalarType dtype = args.query.scalar_type();
  for (const auto& [name, tensor] : {std::pair{"key.dtype", &args.key}, std::pair{"value.dtype", &args.value}}) {
    if (tensor->scalar_type() != dtype) {
      check_of(args).fail(
          name, describe_dtype(tensor->scalar_type()),
          std::string(describe_dtype(dtype)) + " like the query's, or int32 for both key and value (quantised)",
          "convert with tensor.to(query.dtype), or run under autocast");
    }
  }
}

// What kernels have.
void check_kernel_dtypes(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  check.floating("query", args.query);
  if (args.out_dtype && !at::isFloatingType(*args.out_dtype)) {
    check.fail("out_dtype", describe_dtype(*args.out_dtype), "a floating dtype", "leave it out for the query's dtype");
  }
}

void check_ranges(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  check_probability(check, args.p, "weights");
  for (const auto& [name, window] :
       {std::pair{"window_left", &args.window_left}, std::pair{"window_right", &args.window_right}}) {
    if (*window < -1) check.fail(name, c10::str(*window), "0 or more, or -1 (unbounded)", "give a number of keys");
  }
  if (args.num_splits < 0) {
    check.fail("num_splits", std::to_string(args.num_splits), "0 (chosen) or more", "give a number of parts");
  }
}

}  // namespace

std::string AttentionCheck::context() const {
  return "\n  query " + describe(query_) + " · key " + describe(key_) + " · value " + describe(value_);
}

void check_same_device(const AttentionArgs& args) {
  for (const auto& [name, tensor] : {std::pair{"key.device", &args.key}, std::pair{"value.device", &args.value}}) {
    if (tensor->device() != args.query.device()) {
      check_of(args).fail(name, tensor->device().str(), args.query.device().str() + " like the query's",
                          "move all three to one device with tensor.to(device)");
    }
  }
}

void check_problem(const AttentionArgs& args) {
  check_layout(args);
  check_same_device(args);
  check_dtypes(args);
  check_sizes(args);
  check_ranges(args);
  if (is_packed(args)) check_packed(args);
  if (is_quantized(args) || args.k_scale_shift || args.v_scale_shift) check_quantized(args);
  check_modifiers(args);
  if (args.block_key_offsets) check_blocks(args);
}

void AttentionArgs::check() const {
  check_problem(*this);
  check_kernel_dtypes(*this);
  check_dropout(check_of(*this), p, philox_state, query, "query");
}

AttentionResult AttentionArgs::empty() const {
  const auto rows = [&] {
    return empty_result(lse_sizes(query), query.options().dtype(compute_dtype(query)), need_lse);
  };
  return {empty_result(out_sizes(*this), query.options().dtype(out_dtype.value_or(query.scalar_type()))), rows(),
          rows()};
}

void AttentionGradArgs::check() const {
  AttentionArgs::check();
  const AttentionGradArgs& args = *this;
  const AttentionCheck check = check_of(args);
  if (is_quantized(args)) {
    check.fail("key.dtype", "int32 (quantised)", "a floating dtype where gradients are asked for",
               "dequantise key and value, and run forward and backward on these");
  }
  const auto expected_out = out_sizes(args);
  const auto expected_lse = lse_sizes(args.query);
  constexpr const char* kForward = "pass what the forward returned for the same query, key and value";
  const auto check_kind = [&](const char* name, const at::Tensor& t, bool right_dtype, const char* dtype) {
    if (!right_dtype || t.device() != args.query.device()) {
      check.fail(name, describe(t), std::string(dtype) + " " + args.query.device().str(), kForward);
    }
  };
  const auto check_rows = [&](const char* name, const at::Tensor& t) {
    const at::ScalarType dtype = compute_dtype(args.query);
    check_kind(name, t, t.scalar_type() == dtype, describe_dtype(dtype));
  };
  check.same_shape("grad_out.shape", args.grad_out.sym_sizes(), expected_out, kForward);
  check.same_shape("out.shape", args.out.sym_sizes(), expected_out, kForward);
  check.same_shape("lse.shape", args.lse.sym_sizes(), expected_lse, kForward);
  check_kind("grad_out", args.grad_out, at::isFloatingType(args.grad_out.scalar_type()), "of a floating dtype on");
  check_kind("out", args.out, at::isFloatingType(args.out.scalar_type()), "of a floating dtype on");
  check_rows("lse", args.lse);
  if (args.lse_low) {
    check.same_shape("lse_low.shape", args.lse_low->sym_sizes(), expected_lse, kForward);
    check_rows("lse_low", *args.lse_low);
  }
  if (args.grad_lse) {
    check.same_shape("grad_lse.shape", args.grad_lse->sym_sizes(), expected_lse, kForward);
    check_rows("grad_lse", *args.grad_lse);
  }
}

AttentionGradients AttentionGradArgs::empty() const {
  const auto like = [&](const at::Tensor& t) { return empty_result(t.sym_sizes(), query.options()); };
  return {like(query), like(key), like(value), empty_dbias(), empty_dslopes(), empty_dsinks()};
}

void AttentionBackwardStacked::check() const {
  AttentionGradArgs::check();
  const AttentionBackwardStacked& args = *this;
  const AttentionCheck check = check_of(args);
  constexpr const char* kOther = "use attention_backward, which returns three tensors";
  check.same_shape("key.shape", args.key.sym_sizes(), args.query.sym_sizes(), kOther);
  check.same_shape("value.shape", args.value.sym_sizes(), args.query.sym_sizes(), kOther);
  if (args.seqused_k) check.fail("seqused_k", "a tensor", "None where gradients are stacked", kOther);
  if (args.stack_dim < 0 || args.stack_dim >= args.query.dim()) {
    check.fail("stack_dim", std::to_string(args.stack_dim), "0 ... " + std::to_string(args.query.dim() - 1),
               "the last dimension stays the last");
  }
}

AttentionStackedGradients AttentionBackwardStacked::empty() const {
  c10::SymDimVector sizes(query.sym_sizes().begin(), query.sym_sizes().end());
  sizes.insert(sizes.begin() + stack_dim, 3);
  return {empty_result(sizes, query.options()), empty_dbias(), empty_dslopes(), empty_dsinks()};
}

c10::SymDimVector out_sizes(const AttentionArgs& args) {
  const auto q = args.query.sym_sizes();
  c10::SymDimVector sizes(q.begin(), q.end());
  if (!is_quantized(args)) sizes.back() = args.value.sym_size(-1);
  return sizes;
}

c10::SymDimVector lse_sizes(const at::Tensor& query) {
  const auto q = query.sym_sizes();
  c10::SymDimVector sizes{q[0]};
  if (q.size() == 3) {
    sizes.push_back(1);
  } else {
    sizes.append(q.begin() + 2, q.end() - 1);
  }
  sizes.push_back(q[1]);
  return sizes;
}

}  // namespace xformers::ops
