// The operators whose cost is known: name, arguments as in the schema, kind, part of a backward pass, formula.
#include "xformers/ops/attention/attention_cost.h"
#include "xformers/ops/bias_act_dropout/mlp_cost.h"
#include "xformers/ops/blocksparse/blocksparse_cost.h"
#include "xformers/ops/common/product_cost.h"
#include "xformers/ops/csr/csr_cost.h"
#include "xformers/ops/linear_attention/linear_attention_cost.h"
#include "xformers/ops/sparse24/sparse24_cost.h"
#include "xformers/ops/swiglu/swiglu_cost.h"
#include "xformers/profiler/aten_cost.h"

namespace xformers::profiler {
namespace {

// Results as large as these arguments.
constexpr char kX[] = "x", kX1[] = "x1", kX1X2[] = "x1, x2", kXY[] = "x, x", kXWeight[] = "x, weight",
               kXWeightBias[] = "x, weight, weight", kGradOut[] = "grad_out", kXBias[] = "grad_out, bias",
               kAttnLse[] = "attn, lse", kSource[] = "source", kXq[] = "xq, xk, xv", kH[] = "x1, x2, x1", kY[] = "y",
               kValues[] = "values", kOut[] = "out", kTransposed[] = "row_offsets, column_indices, column_indices",
               kNothing[] = "", kInput[] = "input", kXX2[] = "x, x2", kPackedTwice[] = "packed, packed";

template <const char* kWritten>
Cost memory(const Call& call) {
  return memory_cost_of(call, kWritten);
}

template <Cost (*kCost)(const Call&, bool), bool kBackward>
Cost pass(const Call& call) {
  return kCost(call, kBackward);
}
constexpr auto attention = pass<ops::attention_op_cost, false>, attention_backward = pass<ops::attention_op_cost, true>;
constexpr auto flash = pass<ops::flash_cost, false>, flash_backward = pass<ops::flash_cost, true>;
constexpr auto cutlass = pass<ops::cutlass_cost, false>, cutlass_backward = pass<ops::cutlass_cost, true>;

Cost operand_sum(const Call& call) { return ops::two_matrices_cost(call, "a", "b"); }

constexpr char kAttention[] =
    "query, key, value, attn_bias, window_left, window_right, bottom_right, cu_seqlens_q, cu_seqlens_k, seqused_k";
constexpr char kAttentionBackward[] =
    "grad_out, query, key, value, out, lse, attn_bias, window_left, window_right, bottom_right, cu_seqlens_q, "
    "cu_seqlens_k, seqused_k";
constexpr char kCutlass[] =
    "query, key, value, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, custom_mask_type, "
    "compute_log_sumexp, scale, seqlen_k, window_size";
constexpr char kCutlassBackward[] =
    "grad_out_, query, key, value, bias, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, logsumexp, "
    "dropout_p, philox_seed, philox_offset, custom_mask_type, bias_requires_grad, scale, num_splits_key, window_size";
constexpr char kFlash[] =
    "query, key, value, cu_seqlens_q, cu_seqlens_k, seqused_k, max_seqlen_q, max_seqlen_k, p, softmax_scale, "
    "is_causal, window_left, window_right, return_softmax, block_tables";
constexpr char kFlashBackward[] =
    "grads_share_storage, grad, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, "
    "p, softmax_scale, is_causal, window_left, window_right";
constexpr char kFlash3[] =
    "query, key, value, cu_seqlens_q, cu_seqlens_k, seqused_k, max_seqlen_q, max_seqlen_k, p, softmax_scale, is_causal";
constexpr char kFlash3Backward[] =
    "grads_share_storage, grad, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, "
    "softmax_scale, is_causal";
constexpr char kLinearAttention[] = "q, k, v, omega, log_decay, state, cu_seqlens, paired";
constexpr char kLinearAttentionBackward[] = "grad_out, q, k, v, omega, log_decay, state, cu_seqlens, paired";
constexpr char kMlp[] = "x, w1, b1, w2, b2, activation, p";
constexpr char kMlpBackward[] =
    "grad_out, x, z, w1, b1, w2, activation, p, philox_state, need_dx, need_dw1, need_db1, need_dw2, need_db2";
constexpr char kExperts[] = "x, counts, w1, b1, w2, b2";
constexpr char kExpertsBackward[] = "grad_out, z, x, counts, w1, b1, w2, b2";
constexpr char kSwiglu[] = "x, w1, b1, w2, b2, w3, b3";
constexpr char kSwigluPacked[] = "x, w1w2, b1b2, w3, b3";
constexpr char kSwigluBackward[] = "grad_out, x, x1x2, w1, w2, w3, need_dx, need_dw1w2, need_db1b2, need_dw3, need_db3";
constexpr char kAtenFlash[] =
    "query, key, value, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, p, is_causal, return_debug_mask, "
    "scale, "
    "window_left, window_right, seqused_k";
constexpr char kAtenFlashBackward[] =
    "grad_out, query, key, value, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, p, is_causal, "
    "rng_state, unused, scale, window_left, window_right";
constexpr char kAtenEfficient[] =
    "query, key, value, bias, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, custom_mask_type, "
    "compute_log_sumexp, scale, seqlen_k, window_size";
constexpr char kAtenEfficientBackward[] =
    "grad_out_, query, key, value, bias, out, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, logsumexp, "
    "dropout_p, philox_seed, philox_offset, custom_mask_type, bias_requires_grad, scale, num_splits_key, window_size";
constexpr char kConvolution[] = "input, weight, bias, stride, padding, dilation, transposed, output_padding, groups";
constexpr char kConvolutionBackward[] =
    "grad_output, input, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, "
    "output_mask";

constexpr Kind kProduct = Kind::kProduct, kAttend = Kind::kAttention, kOther = Kind::kOther, kCopy = Kind::kCopy;

constexpr CostRule kRules[] = {
    // ---- the library's, by family ----
    {"xformers::attention_forward", kAttention, kAttend, false, attention},
    {"xformers::attention_backward", kAttentionBackward, kAttend, true, attention_backward},
    {"xformers::attention_backward_stacked", kAttentionBackward, kAttend, true, attention_backward},
    {"xformers::efficient_attention_forward_cutlass", kCutlass, kAttend, false, cutlass},
    {"xformers::efficient_attention_backward_cutlass", kCutlassBackward, kAttend, true, cutlass_backward},
    {"xformers_flash::flash_fwd", kFlash, kAttend, false, flash},
    {"xformers_flash::flash_bwd", kFlashBackward, kAttend, true, flash_backward},
    {"xformers_flash3::flash_fwd", kFlash3, kAttend, false, flash},
    {"xformers_flash3::flash_bwd", kFlash3Backward, kAttend, true, flash_backward},
    {"xformers::linear_attention", kLinearAttention, kAttend, false, ops::linear_attention_cost},
    {"xformers::linear_attention_backward", kLinearAttentionBackward, kAttend, true,
     ops::linear_attention_backward_cost},
    {"xformers::merge_attentions", "attn, lse", kOther, false, memory<kNothing>},
    {"xformers::merge_attentions_backward", "grad_out, grad_lse, attn, lse", kOther, true, memory<kAttnLse>},
    {"xformers::product", "a, b, bias", kProduct, false, ops::product_op_cost},
    {"xformers::fused_linear", "x, weight, bias, activation", kProduct, false, ops::fused_linear_cost},
    {"xformers::tiled_matmul", "a, b, ms, ns, ks", kProduct, false, ops::tiled_matmul_cost},
    {"xformers::swiglu_fused", kSwiglu, kProduct, false, ops::swiglu_cost},
    {"xformers::swiglu_forward", kSwiglu, kProduct, false, ops::swiglu_cost},
    {"xformers::swiglu_packedw", kSwigluPacked, kProduct, false, ops::swiglu_packed_cost},
    {"xformers::swiglu_backward", kSwigluBackward, kProduct, true, ops::swiglu_backward_cost},
    {"xformers::swiglu_backward_", kSwigluBackward, kProduct, true, ops::swiglu_backward_cost},
    {"xformers::dual_gemm_silu_identity_mul", "x, w1, b1, w2, b2", kProduct, false, ops::dual_gemm_cost},
    {"xformers::gemm_fused_operand_sum", "a, b, out_mm, out_sum", kProduct, false, operand_sum},
    {"xformers::mlp_inner", kMlp, kProduct, false, ops::mlp_cost},
    {"xformers::mlp_forward", kMlp, kProduct, false, ops::mlp_cost},
    {"xformers::mlp_backward", kMlpBackward, kProduct, true, ops::mlp_backward_cost},
    {"xformers::experts_mlp_inner", kExperts, kProduct, false, ops::mlp_cost},
    {"xformers::experts_mlp_forward", kExperts, kProduct, false, ops::mlp_cost},
    {"xformers::experts_mlp_backward", kExpertsBackward, kProduct, true, ops::mlp_backward_cost},
    {"xformers::experts_gather", "x, tokens, slots", kOther, false, memory<kX>},
    {"xformers::experts_combine", "y, tokens, slots, weights", kOther, false, memory<kY>},
    {"xformers::experts_combine_backward", "grad_out, y, tokens, slots, weights", kOther, true, memory<kY>},
    {"xformers::silu_gate", "x1, x2", kOther, false, memory<kX1>},
    {"xformers::silu_bw_fused", "x1, x2, dx4", kOther, true, memory<kH>},
    {"xformers::silu_gate_backward", "x1, x2, dh", kOther, true, memory<kX1X2>},
    {"xformers::silu_gate_backward_out", "x1, x2, dh, dx1dx2", kOther, true, memory<kX1>},
    {"xformers::rms_norm", "x, weight", kOther, false, memory<kX>},
    {"xformers::rms_norm_add_", "x, y, weight", kOther, false, memory<kXY>},
    {"xformers::rms_norm_backward", "grad_out, x, weight", kOther, true, memory<kXWeight>},
    {"xformers::layer_norm", "x, weight, bias", kOther, false, memory<kX>},
    {"xformers::layer_norm_of_sum", "x, residual, weight, bias", kOther, false, memory<kXY>},
    {"xformers::layer_norm_backward", "grad_out, x, weight", kOther, true, memory<kXWeightBias>},
    {"xformers::softmax", "x, mask, causal", kOther, false, memory<kX>},
    {"xformers::log_softmax", "x, mask, causal", kOther, false, memory<kX>},
    {"xformers::softmax_backward", "grad_out, out, causal, log", kOther, true, memory<kGradOut>},
    {"xformers::sparse24_sparsify_both_ways", "input", kOther, false, ops::sparse24_pack_cost<2>},
    {"xformers::sparse24_sparsify", "input", kOther, false, ops::sparse24_pack_cost<1>},
    {"xformers::sparse24_apply", "input, threads_masks", kOther, false, ops::sparse24_pack_cost<2>},
    {"xformers::sparse24_activation", "x, activation, x2", kOther, false, ops::sparse24_pack_cost<2>},
    {"xformers::sparse24_activation_backward", "grad_out, x, threads_masks, activation, x2", kOther, true,
     memory<kXX2>},
    {"xformers::sparse24_apply_dense_output", "input, threads_masks", kOther, false, memory<kInput>},
    {"xformers::sparse24_unpack", "packed, meta, rows, cols", kOther, false, memory<kPackedTwice>},
    {"xformers::sparse24_product", "packed, meta, b, rows, cols, bias", kProduct, false, ops::sparse24_product_cost},
    {"xformers::sparse24_linear", "x, weight, bias", kProduct, false, ops::sparse24_linear_cost},
    {"xformers::sparse24_activated_linear", "z, weight, bias", kProduct, false, ops::sparse24_linear_cost},
    {"xformers::_sparse24_gemm", "a, b, meta_reordered", kProduct, false, ops::sparse24_gemm_cost},
    {"xformers::sparse24_largest_mask_2d", "input", kOther, false, memory<kInput>},
    {"xformers::sparse24_largest_with_Krandom_mask_2d", "input", kOther, false, memory<kInput>},
    {"xformers::_sparse24_pack_mask", "input", kOther, false, memory<kNothing>},
    {"xformers::_sparse24_reorder_meta", "input", kOther, false, memory<kInput>},
    {"xformers::_sparse24_pack_tensor_according_to_mask", "a, meta", kOther, false, memory<kNothing>},
    {"xformers::rotary", "x, theta", kOther, false, memory<kX>},
    {"xformers::rope_padded", "xq, xk, xv", kOther, false, memory<kXq>},
    {"xformers::rope_padded_out", "xq, xk, xv", kOther, false, memory<kXq>},
    {"xformers::bias_act_dropout", "x, bias, residual", kOther, false, memory<kX>},
    {"xformers::bias_act_dropout_backward", "grad_out, x, bias", kOther, true, memory<kXBias>},
    {"xformers::bias_act_dropout_backward_", "grad_out, x, bias", kOther, true, memory<kXBias>},
    {"xformers::index_select_cat", "sources, indices", kOther, false, memory<kNothing>},
    {"xformers::index_select_cat_backward", "grad_out, indices", kOther, true, memory<kGradOut>},
    {"xformers::scaled_index_add_", "input, index, source, scaling", kOther, false, memory<kSource>},
    {"xformers::scaled_index_add_backward", "grad_out, index, source, scaling", kOther, true, memory<kSource>},
    {"xformers::sddmm_sputnik", "a, b, row_indices, row_offsets, column_indices", kProduct, false, ops::sddmm_cost},
    {"xformers::spmm_sputnik", "b, row_indices, values, row_offsets, column_indices, m", kProduct, false,
     ops::spmm_cost},
    {"xformers::sparse_softmax_sputnik", "m, n, row_indices, values, row_offsets", kOther, false, memory<kValues>},
    {"xformers::sparse_softmax_backward_sputnik", "m, n, row_indices, out, grad, row_offsets", kOther, true,
     memory<kOut>},
    {"xformers::csr_transpose", "row_offsets, column_indices, n", kOther, false, memory<kTransposed>},
    {"xformers::blocksparse_sdd", "a, b, row_offsets, column_indices, block", kProduct, false, ops::block_sdd_cost},
    {"xformers::blocksparse_dsd", "values, b, row_offsets, column_indices, m", kProduct, false, ops::block_dsd_cost},
    {"xformers::blocksparse_softmax_inner", "values, row_offsets, column_indices, heads, n, bias", kOther, false,
     memory<kValues>},
    {"xformers::blocksparse_softmax_backward", "grad_out, out, row_offsets, column_indices", kOther, true,
     memory<kGradOut>},
    // ---- LibTorch's that multiply ----
    {"aten::mm", "self, mat2", kProduct, false, aten::mm},
    {"aten::addmm", "self, mat1, mat2", kProduct, false, aten::addmm},
    {"aten::addmm_", "self, mat1, mat2", kProduct, false, aten::addmm},
    {"aten::_addmm_activation", "self, mat1, mat2", kProduct, false, aten::addmm},
    {"aten::bmm", "self, mat2", kProduct, false, aten::bmm},
    {"aten::baddbmm", "self, batch1, batch2", kProduct, false, aten::baddbmm},
    {"aten::baddbmm_", "self, batch1, batch2", kProduct, false, aten::baddbmm},
    {"aten::mv", "self, vec", kProduct, false, aten::mv},
    {"aten::_int_mm", "self, mat2", kProduct, false, aten::mm},
    {"aten::_scaled_mm", "self, mat2", kProduct, false, aten::mm},
    {"aten::_scaled_mm_v2", "self, mat2", kProduct, false, aten::mm},
    {"aten::_sparse_semi_structured_mm", "mat1, mat1_meta, mat2", kProduct, false, aten::sparse_mm},
    {"aten::_sparse_semi_structured_addmm", "input, mat1, mat1_meta, mat2", kProduct, false, aten::sparse_mm},
    {"aten::_cslt_sparse_mm", "compressed_A, dense_B", kProduct, false, aten::cslt_sparse_mm},
    {"aten::convolution", kConvolution, kProduct, false, aten::convolution},
    {"aten::_convolution", kConvolution, kProduct, false, aten::convolution},
    {"aten::convolution_overrideable", kConvolution, kProduct, false, aten::convolution},
    {"aten::convolution_backward", kConvolutionBackward, kProduct, true, aten::convolution_backward},
    {"aten::_scaled_dot_product_flash_attention", "query, key, value, dropout_p, is_causal", kAttend, false,
     aten::sdpa_forward},
    {"aten::_scaled_dot_product_flash_attention_for_cpu", "query, key, value, dropout_p, is_causal", kAttend, false,
     aten::sdpa_forward},
    {"aten::_scaled_dot_product_efficient_attention",
     "query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal", kAttend, false, aten::sdpa_forward},
    {"aten::_scaled_dot_product_cudnn_attention",
     "query, key, value, attn_bias, compute_log_sumexp, dropout_p, is_causal", kAttend, false, aten::sdpa_forward},
    {"aten::_scaled_dot_product_flash_attention_backward",
     "grad_out, query, key, value, out, logsumexp, cum_seq_q, cum_seq_k, max_q, max_k, dropout_p, is_causal", kAttend,
     true, aten::sdpa_backward},
    {"aten::_scaled_dot_product_flash_attention_for_cpu_backward",
     "grad_out, query, key, value, out, logsumexp, dropout_p, is_causal", kAttend, true, aten::sdpa_backward},
    {"aten::_scaled_dot_product_efficient_attention_backward",
     "grad_out_, query, key, value, attn_bias, out, logsumexp, philox_seed, philox_offset, dropout_p, grad_input_mask, "
     "is_causal",
     kAttend, true, aten::sdpa_backward},
    {"aten::_scaled_dot_product_cudnn_attention_backward",
     "grad_out, query, key, value, out, logsumexp, philox_seed, philox_offset, attn_bias, cum_seq_q, cum_seq_k, max_q, "
     "max_k, dropout_p, is_causal",
     kAttend, true, aten::sdpa_backward},
    {"aten::_flash_attention_forward", kAtenFlash, kAttend, false, aten::flash_forward},
    {"aten::_flash_attention_backward", kAtenFlashBackward, kAttend, true, aten::flash_backward},
    {"aten::_efficient_attention_forward", kAtenEfficient, kAttend, false, aten::efficient_forward},
    {"aten::_efficient_attention_backward", kAtenEfficientBackward, kAttend, true, aten::efficient_backward},
    // ---- LibTorch's that move memory ----
    {"aten::copy_", "self, src", kCopy, false, aten::copy},
    {"aten::fill_", "self", kOther, false, aten::fill},
    {"aten::zero_", "self", kOther, false, aten::fill},
    {"aten::add", "self, other", kOther, false, aten::pointwise},
    {"aten::sub", "self, other", kOther, false, aten::pointwise},
    {"aten::mul", "self, other", kOther, false, aten::pointwise},
    {"aten::div", "self, other", kOther, false, aten::pointwise},
    {"aten::add_", "self, other", kOther, false, aten::in_place},
    {"aten::mul_", "self, other", kOther, false, aten::in_place},
    {"aten::div_", "self, other", kOther, false, aten::in_place},
    {"aten::lerp_", "self, end", kOther, false, aten::in_place},
    {"aten::addcmul_", "self, tensor1, tensor2", kOther, false, aten::in_place},
    {"aten::addcdiv_", "self, tensor1, tensor2", kOther, false, aten::in_place},
    {"aten::sqrt", "self", kOther, false, aten::pointwise},
    {"aten::relu", "self", kOther, false, aten::pointwise},
    {"aten::gelu", "self", kOther, false, aten::pointwise},
    {"aten::silu", "self", kOther, false, aten::pointwise},
    {"aten::gelu_backward", "grad_output, self", kOther, true, aten::pointwise},
    {"aten::silu_backward", "grad_output, self", kOther, true, aten::pointwise},
    {"aten::threshold_backward", "grad_output, self", kOther, true, aten::pointwise},
    {"aten::_softmax", "self", kOther, false, aten::pointwise},
    {"aten::_log_softmax", "self", kOther, false, aten::pointwise},
    {"aten::native_layer_norm", "input", kOther, false, aten::pointwise},
    {"aten::sum", "self", kOther, false, aten::reduction},
    {"aten::mean", "self", kOther, false, aten::reduction},
};

}  // namespace

std::vector<const CostRule*> cost_rules() {
  std::vector<const CostRule*> rules;
  for (const CostRule& rule : kRules) rules.push_back(&rule);
  return rules;
}

}  // namespace xformers::profiler
