#include "xformers/ops/attention/attention_run.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "xformers/kernels/params/kv_rows.h"
#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/attention/gathered_keys.h"
#include "xformers/ops/attention/heads.h"
#include "xformers/ops/common/dropout.h"
#include "xformers/ops/common/expanded.h"

namespace xformers::ops {
namespace {

// A boolean mask as what is added: 0 where True, -inf where False.
at::Tensor to_score_tensor(const at::Tensor& bias, at::ScalarType dtype) {
  if (bias.scalar_type() != at::kBool) return bias;
  return map_unexpanded(bias, bias.dim(), [&](const at::Tensor& mask) {
    const auto options = mask.options().dtype(dtype);
    const double hidden = -std::numeric_limits<double>::infinity();
    return at::where(mask, at::zeros({}, options), at::full({}, hidden, options));
  });
}

// The tensors in the form that kernels take.
void to_kernel_form(AttentionArgs& args) {
  for (at::Tensor* t : {&args.query, &args.key, &args.value}) give_unit_last_stride(*t);
  if (args.query.dim() == 5 && args.k_scale_shift &&
      (args.k_scale_shift->stride(3) != 0 || args.v_scale_shift->stride(3) != 0)) {
    args.key = args.key.contiguous();  // heads share keys only where they share the coefficients too
    args.value = args.value.contiguous();
  }
  if (args.attn_bias) args.attn_bias = to_score_tensor(*args.attn_bias, args.query.scalar_type());
  for (OptionalTensor* numbers : {&args.alibi_slopes, &args.sinks}) {
    if (*numbers) *numbers = (*numbers)->to(compute_dtype(args.query));
  }
  for (OptionalTensor* list : {&args.block_key_offsets, &args.block_keys, &args.block_query_offsets,
                               &args.block_queries, &args.block_bits_of, &args.block_bits}) {
    if (*list) *list = (*list)->contiguous();
  }
}

int64_t head_dim_v(const AttentionArgs& args) { return is_quantized(args) ? args.query.size(-1) : args.value.size(-1); }

HeadDims head_dims_of(const AttentionArgs& args) {
  const HeadDims dims = head_dims(args.query, args.key, args.value);
  const bool own_coefficients = dims == HeadDims::kHeads && args.k_scale_shift &&
                                (args.k_scale_shift->stride(2) != 0 || args.v_scale_shift->stride(2) != 0);
  return own_coefficients ? HeadDims::kGroups : dims;
}

SeqLayout to_layout(const AttentionArgs& args) {
  if (!args.cu_seqlens_q) return {};
  const auto data = [](const OptionalTensor& t) { return t ? t->const_data_ptr<int32_t>() : nullptr; };
  SeqLayout layout{.num_sequences = args.cu_seqlens_q->size(0) - 1,
                   .cu_seqlens_q = data(args.cu_seqlens_q),
                   .cu_seqlens_k = data(args.cu_seqlens_k),
                   .seqused_k = data(args.seqused_k),
                   .pages = {}};
  if (args.page_table) {
    // A table without entries has no address of its own, and none of it is read.
    layout.pages = {.data = data(args.page_table->numel() > 0 ? args.page_table : args.cu_seqlens_q),
                    .row_stride = args.page_table->stride(0),
                    .max_pages = args.page_table->size(1),
                    .page_size = args.page_size.expect_int()};
  }
  return layout;
}

BlockLists block_lists(const AttentionArgs& args) {
  const auto list = [](const OptionalTensor& t) { return t.value_or(at::Tensor()); };
  return {.key_offsets = list(args.block_key_offsets),
          .key_blocks = list(args.block_keys),
          .query_offsets = list(args.block_query_offsets),
          .query_blocks = list(args.block_queries),
          .bits_of = list(args.block_bits_of),
          .bits = list(args.block_bits),
          .block_q = args.block_q,
          .block_k = args.block_k};
}

KvQuantization to_quantization(const AttentionArgs& args, HeadDims dims) {
  if (!is_quantized(args)) return {};
  KvQuantization quantization;
  if (args.k_scale_shift) {
    quantization.format = KvFormat::kFp8;
    quantization.k_scale_shift = to_heads(*args.k_scale_shift, dims);
    quantization.v_scale_shift = to_heads(*args.v_scale_shift, dims);
  } else {
    quantization.format = KvFormat::kInt4;
    quantization.num_groups = int4_groups(args.query.size(-1), args.key.size(-1));
  }
  return quantization;
}

// What forward and backward params have in common.
template <class Params>
void fill_common(Params& params, const AttentionArgs& args, HeadDims dims) {
  params.shape = to_shape(args.query, args.key, head_dim_v(args), dims);
  params.q = to_heads(args.query, dims);
  params.k = to_heads(args.key, dims);
  params.v = to_heads(args.value, dims);
  params.seq = to_layout(args);
  params.band = {.window_left = args.window_left.expect_int(),
                 .window_right = args.window_right.expect_int(),
                 .bottom_right = args.bottom_right};
  params.blocks = to_block_mask(block_lists(args), params.shape, dims);
  if (args.attn_bias) params.mods.bias = to_score_bias(*args.attn_bias, dims);
  if (args.attn_bias && params.seq.packed()) {
    params.seq.most_queries = args.attn_bias->size(-2), params.seq.most_keys = args.attn_bias->size(-1);
  }
  params.mods.softcap = args.softcap;
  if (args.alibi_slopes) params.mods.alibi_slopes = to_head_numbers(*args.alibi_slopes, dims);
  if (args.sinks) params.mods.sinks = to_head_numbers(*args.sinks, dims);
  params.dropout = to_dropout(args.p, args.philox_state);
  params.softmax_scale = args.scale.value_or(1 / std::sqrt(static_cast<double>(params.shape.head_dim)));
}

at::DimVector concrete(const c10::SymDimVector& sizes) {
  at::DimVector out;
  for (const auto& size : sizes) out.push_back(size.expect_int());
  return out;
}

// Shape [0], at half the time of at::empty, which a call on few elements would feel.
at::Tensor without_elements(const at::TensorOptions& options) {
  return at::detail::empty_generic(at::IntArrayRef{0}, c10::GetAllocator(options.device().type()),
                                   c10::DispatchKeySet(options.computeDispatchKey()),
                                   c10::typeMetaToScalarType(options.dtype()), std::nullopt);
}

// Whether the bias of packed sequences is shared by some of them, or by heads: dbias is a sum then.
bool shares_bias(const AttentionGradArgs& args) {
  const at::Tensor& bias = *args.attn_bias;
  if (!args.cu_seqlens_q) return false;
  if (bias.size(0) == 1 && num_sequences(args).expect_int() > 1) return true;
  for (int64_t dim = 1; dim + 2 < bias.dim(); ++dim) {
    if (bias.size(dim) == 1 && args.query.size(dim + 1) > 1) return true;
  }
  return false;
}

// A number per sequence and head, in which a kernel leaves a gradient of `like`, which may have one per head.
at::Tensor each_number(const AttentionGradArgs& args, const at::Tensor& like) {
  at::DimVector sizes{num_sequences(args).expect_int()};
  const int64_t head_dims = std::max<int64_t>(args.query.dim() - 3, 1);
  sizes.append(like.sizes().end() - head_dims, like.sizes().end());
  return at::empty(sizes, args.query.options().dtype(compute_dtype(args.query)));
}
void write_numbers(const at::Tensor& to, const at::Tensor& each) {
  to.copy_(each.dim() == to.dim() ? each : each.sum(0));
}

// Into the tensors of `grads`, whatever their strides are.
void write_gradients(const AttentionGradArgs& given, const AttentionGradients& grads, BackwardKernel kernel) {
  const auto& [dq, dk, dv, dbias, dslopes, dsinks] = grads;
  if (given.out.numel() == 0) {  // no query, so nothing reaches the keys
    for (const at::Tensor* t : {&dk, &dv, &dbias, &dslopes, &dsinks}) t->zero_();
    return;
  }
  AttentionGradArgs args = given;
  to_kernel_form(args);
  for (at::Tensor* t : {&args.grad_out, &args.out}) {
    *t = t->to(args.query.scalar_type());
    give_unit_last_stride(*t);
  }
  give_unit_last_stride(args.lse);
  if (args.lse_low) give_unit_last_stride(*args.lse_low);
  if (args.grad_lse) give_unit_last_stride(*args.grad_lse);

  const HeadDims dims = head_dims_of(args);
  AttentionBwdParams params;
  fill_common(params, args, dims);
  params.out = to_heads(args.out, dims);
  params.dout = to_heads(args.grad_out, dims);
  params.lse = to_rows(args.lse, dims);
  if (args.lse_low) params.lse_low = to_rows(*args.lse_low, dims);
  if (args.grad_lse) params.dlse = to_rows(*args.grad_lse, dims);
  params.dq = to_heads(dq, dims);
  params.dk = to_heads(dk, dims);
  params.dv = to_heads(dv, dims);
  at::Tensor dbias_sum, each_slope, each_sink;
  if (args.need_bias_grad && args.attn_bias) {
    params.dbias_shared = shares_bias(args);
    if (params.dbias_shared) {
      dbias_sum = at::zeros(dbias.sizes(), dbias.options().dtype(compute_dtype(args.query)));
    } else if (args.cu_seqlens_q) {
      dbias.zero_();
    }
    params.dbias = to_score_bias(params.dbias_shared ? dbias_sum : dbias, dims);
  }
  if (args.need_slopes_grad && args.alibi_slopes) {
    each_slope = each_number(args, *args.alibi_slopes);
    params.dslopes = to_head_numbers(each_slope, dims);
  }
  if (args.need_sinks_grad && args.sinks) {
    each_sink = each_number(args, *args.sinks);
    params.dsinks = to_head_numbers(each_sink, dims);
  }
  kernel(params);
  if (dbias_sum.defined()) dbias.copy_(dbias_sum);
  if (each_slope.defined()) write_numbers(dslopes, each_slope);
  if (each_sink.defined()) write_numbers(dsinks, each_sink);
}

}  // namespace

AttentionResult run_forward(AttentionArgs& args, ForwardKernel kernel) {
  args.check();
  if (args.query.is_cpu()) check_offsets(args);

  to_kernel_form(args);
  // Kernels write the query's dtype, or the one that they compute in; any other is converted from that.
  const at::ScalarType dtype = args.query.scalar_type(), out_dtype = args.out_dtype.value_or(dtype);
  const bool wide_out = out_dtype != dtype && dtype != compute_dtype(args.query);
  const auto options = args.query.options(), wide_options = options.dtype(compute_dtype(args.query));
  at::Tensor out = at::empty(concrete(out_sizes(args)), wide_out ? wide_options : options);
  const auto rows = [&] {
    return args.need_lse ? at::empty(concrete(lse_sizes(args.query)), wide_options) : without_elements(wide_options);
  };
  at::Tensor lse = rows(), lse_low = rows();
  if (out.numel() > 0) {
    const HeadDims dims = head_dims_of(args);
    AttentionFwdParams params;
    fill_common(params, args, dims);
    params.out = to_heads(out, dims);
    params.wide_out = wide_out;
    if (args.need_lse) {
      params.lse = to_rows(lse, dims);
      params.lse_low = to_rows(lse_low, dims);
    }
    params.quantization = to_quantization(args, dims);
    params.num_splits = args.num_splits;
    kernel(params);
  }
  return {out.scalar_type() == out_dtype ? out : out.to(out_dtype), lse, lse_low};
}

AttentionGradients run_backward(const AttentionGradArgs& args, BackwardKernel kernel) {
  args.check();
  if (args.query.is_cpu()) check_offsets(args);
  if (keys_may_be_shared(args)) {
    return backward_on_gathered_keys(args,
                                     [&](const AttentionGradArgs& gathered) { return run_backward(gathered, kernel); });
  }
  const AttentionGradients grads = args.empty();
  write_gradients(args, grads, kernel);
  return grads;
}

AttentionStackedGradients run_backward_stacked(const AttentionBackwardStacked& args, BackwardKernel kernel) {
  args.check();
  if (args.query.is_cpu()) check_offsets(args);
  const auto [stacked, dbias, dslopes, dsinks] = args.empty();
  const auto part = [&, &stacked = stacked](int64_t index) { return stacked.select(args.stack_dim, index); };
  write_gradients(args, {part(0), part(1), part(2), dbias, dslopes, dsinks}, kernel);
  return {stacked, dbias, dslopes, dsinks};
}

}  // namespace xformers::ops
