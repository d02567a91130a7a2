// The checks of the operators around attention.
#include <initializer_list>
#include <string>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/params/checks.h"

namespace xformers {
namespace {

// One operator's sentences.
struct Check {
  const char* op;

  [[noreturn]] void fail(std::string_view name, std::string_view got, std::string_view expected,
                         std::string_view fix) const {
    xformers::fail({.where = op, .name = name, .got = got, .expected = expected, .fix = fix});
  }

  void dtype(const char* name, DType dtype) const {
    if (dtype > DType::kFloat16) {
      fail(name, "number " + std::to_string(static_cast<int>(dtype)), "fp32, fp64, bf16 or fp16",
           "pass one of DType's values");
    }
  }
  void sizes(std::initializer_list<int64_t> sizes) const {
    for (int64_t size : sizes) {
      if (size < 0) fail("a size", std::to_string(size), ">= 0", "see its parameters");
    }
  }
  // Tensors that may not be missing where there are elements.
  void given(bool any, std::initializer_list<const void*> tensors) const {
    for (const void* data : tensors) {
      if (any && !data) fail("a tensor", "missing", "all of its inputs and results", "see its parameters");
    }
  }
  // A weight and the like beside rows; `used`: there is one.
  void weight(const char* name, DType dtype, DType of_rows, WeightTypes taken, bool used) const {
    this->dtype(name, dtype);
    const bool narrow = size_of(dtype) == 2 && of_rows != DType::kFloat64;
    const bool fits = dtype == compute_dtype(of_rows) || (taken == WeightTypes::kAlsoOfRows && dtype == of_rows) ||
                      (taken == WeightTypes::kAlso16Bit && narrow);
    if (fits || !used) return;
    const std::string expected = name_of(compute_dtype(of_rows));
    fail(name, std::string(name_of(dtype)) + " beside rows of " + name_of(of_rows),
         taken == WeightTypes::kCompute                                   ? expected
         : taken == WeightTypes::kAlso16Bit && of_rows != DType::kFloat64 ? expected + ", bf16 or fp16"
         : of_rows == compute_dtype(of_rows)                              ? expected
                                                                          : expected + " or " + name_of(of_rows),
         "convert it");
  }
  void probability(double p) const {
    if (!(p >= 0 && p <= 1)) fail("dropout p", std::to_string(p), "0 <= p <= 1", "pass the probability of dropping");
  }
};

void check_norm(const Check& check, const NormShape& shape) {
  check.dtype("dtype", shape.dtype);
  check.sizes({shape.rows, shape.width});
  if (shape.kind > NormKind::kLayer) check.fail("the kind of norm", "unknown", "kRms or kLayer", "see NormKind");
  if (!(shape.eps >= 0)) check.fail("eps", std::to_string(shape.eps), ">= 0", "pass a small positive number");
}

void check_fused(const Check& check, const BiasActDropoutShape& shape, WeightTypes taken) {
  check.dtype("dtype", shape.dtype);
  check.sizes({shape.rows, shape.width});
  check.probability(shape.dropout.p);
  if (shape.activation > Activation::kGeluExact)
    check.fail("activation", "unknown", "one that is named", "see Activation");
  if (shape.activation == Activation::kGeluExact && taken != WeightTypes::kCompute)  // that is, not on the CPU
    check.fail("activation", "the exact gelu", "one that this device's kernels have", "use kGelu, or apply it before");
}

void check_softmax(const Check& check, const SoftmaxShape& shape, const void* first, const void* second) {
  check.dtype("dtype", shape.dtype);
  check.sizes({shape.outer0, shape.outer1, shape.rows, shape.width});
  check.given(shape.outer0 * shape.outer1 * shape.rows * shape.width > 0, {first, second});
}

void check_merge(const MergeShape& shape, const MergePart* parts, const void* rows) {
  const Check check{"merge_attentions"};
  for (DType dtype : {shape.dtype, shape.out_dtype, shape.lse_dtype}) check.dtype("dtype", dtype);
  check.sizes({shape.num_parts, shape.batch, shape.seqlen, shape.num_groups, shape.heads_per_group, shape.head_dim});
  if (size_of(shape.lse_dtype) == 2) {
    check.fail("lse", name_of(shape.lse_dtype), "fp32 or fp64", "convert it");
  }
  if (shape.num_rows() == 0 || shape.num_parts == 0) return;
  check.given(true, {parts});
  check.given(shape.head_dim > 0, {rows});
  for (int64_t i = 0; i < shape.num_parts; ++i) {
    check.given(true, {parts[i].lse.data});
    check.given(shape.head_dim > 0, {parts[i].out.data});
  }
}

void check_linear_attention(const LinearAttentionShape& s, const LinearAttentionInputs& in) {
  const Check check{"linear_attention"};
  check.dtype("dtype", s.dtype);
  check.sizes({s.num_sequences, s.num_heads, s.seqlen_q, s.seqlen_k, s.head_dim_v});
  const auto refuse = [&](const char* name, int64_t got, const std::string& expected, const char* fix) {
    check.fail(name, std::to_string(got), expected, fix);
  };
  if (s.head_dim < 1) refuse("head_dim", s.head_dim, ">= 1", "features have at least one element");
  if (s.num_features < 1) refuse("the number of features", s.num_features, ">= 1", "draw some");
  if (s.map > FeatureMap::kExpPaired) check.fail("the feature map", "unknown", "one that is named", "see FeatureMap");
  if (s.map == FeatureMap::kGiven && s.num_features != s.head_dim) {
    refuse("the number of features", s.num_features, std::to_string(s.head_dim), "given features are the head");
  }
  if (s.map == FeatureMap::kExpPaired && s.num_features % 2 != 0) {
    refuse("the number of features", s.num_features, "an even number", "they come in pairs");
  }
  if ((s.causal || s.cu_seqlens) && s.seqlen_q != s.seqlen_k) {
    refuse("seqlen_k", s.seqlen_k, std::to_string(s.seqlen_q), "query i sees the keys of the same sequence");
  }
  if (in.log_decay && !s.causal) check.fail("log_decay", "given", "none where not causal", "set causal");
  check.given(s.map != FeatureMap::kGiven, {in.omega});
  const bool any = s.num_sequences > 0 && s.num_heads > 0;
  check.given(any && s.seqlen_q > 0, {in.q.data});
  check.given(any && s.seqlen_k > 0, {in.k.data});
  check.given(any && s.seqlen_k > 0 && s.head_dim_v > 0, {in.v.data});
}

void check_head(const Check& check, DType dtype, int64_t head_dim) {
  check.dtype("dtype", dtype);
  if (head_dim < 2 || head_dim % 2 != 0) {
    check.fail("head_dim", std::to_string(head_dim), "an even number",
               "elements are turned in pairs; pad the head by one");
  }
}

// 32-bit numbers of rows, columns and values.
void check_pattern(const Check& check, const CsrPattern& p, bool columns_used) {
  check.sizes({p.rows, p.columns, p.nnz});
  for (const int64_t size : {p.rows, p.columns, p.nnz}) {
    if (size > 0x7fffffff) check.fail("a size", std::to_string(size), "less than 2^31", "split the matrix");
  }
  check.given(true, {p.row_offsets});
  check.given(columns_used && p.nnz > 0, {p.column_indices});
}

void check_sparse24_activation(const Check& check, Activation activation) {
  switch (activation) {
    case Activation::kNone:
    case Activation::kRelu:
    case Activation::kSquaredRelu:
    case Activation::kGelu:
    case Activation::kGeluExact: return;
    default:
      check.fail("activation", "another one", "kNone, kRelu, kSquaredRelu, kGelu or kGeluExact", "apply it before");
  }
}

// A packed matrix that is wanted, or read.
void check_packed(const Check& check, const Sparse24Packed& packed, bool any) {
  check.given(any && packed.values, {packed.meta});
}

void check_layout(const Check& check, const BlockLayout& l) {
  check.sizes({l.heads, l.block_rows, l.block_columns});
  if (l.block < 16 || l.block % 16 != 0) {
    check.fail("block", std::to_string(l.block), "a multiple of 16", "pad the blocks");
  }
  check_pattern(check, {l.heads * l.block_rows, l.block_columns, l.nnz, l.row_offsets, l.column_indices}, true);
}

}  // namespace

void check(const NormFwdParams& p, WeightTypes taken) {
  const Check check{"norm"};
  check_norm(check, p.shape);
  check.weight("the weight or bias", p.weight_dtype, p.shape.dtype, taken, p.weight || p.bias);
  const bool layer = p.shape.kind == NormKind::kLayer;
  if (p.increment.data && layer) check.fail("increment", "given for a layer norm", "none", "add it before");
  if (p.bias && !layer) check.fail("bias", "given for an RMS norm", "none", "add it behind");
  check.given(p.shape.rows > 0 && p.shape.width > 0, {p.x.data, p.out.data});
}

void check(const NormBwdParams& p, WeightTypes taken) {
  const Check check{"norm_backward"};
  check_norm(check, p.shape);
  check.weight("the weight", p.weight_dtype, p.shape.dtype, taken, p.weight || p.dweight || p.dbias);
  if (p.dbias && p.shape.kind != NormKind::kLayer) check.fail("dbias", "wanted of an RMS norm", "none", "pass nullptr");
  check.given(p.shape.rows > 0 && p.shape.width > 0, {p.x.data, p.dout.data});
}

void check(const BiasActDropoutFwdParams& p, WeightTypes taken) {
  const Check check{"bias_act_dropout"};
  check_fused(check, p.shape, taken);
  check.weight("bias", p.shape.bias_dtype, p.shape.dtype, taken, p.bias);
  check.given(p.shape.rows > 0 && p.shape.width > 0, {p.x.data, p.out.data});
}

void check(const BiasActDropoutBwdParams& p, WeightTypes taken) {
  const Check check{"bias_act_dropout"};
  check_fused(check, p.shape, taken);
  check.weight("bias", p.shape.bias_dtype, p.shape.dtype, taken, p.bias || p.dbias);
  if (!p.x.data && p.shape.activation != Activation::kNone && p.shape.rows > 0 && p.shape.width > 0) {
    check.fail("x", "missing", "the input of the activation", "keep it for backward");
  }
  check.given(p.shape.rows > 0 && p.shape.width > 0 && (p.dx.data || p.dbias), {p.dout.data});
}

void check(const ScaledIndexAddParams& p, WeightTypes taken) {
  const Check check{"scaled_index_add"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.num_indices, p.middle, p.width});
  check.weight("scaling", p.scaling_dtype, p.dtype, taken, p.scaling);
  check.given(p.num_indices > 0 && p.middle > 0 && p.width > 0 && p.rows > 0, {p.input.data, p.source.data, p.index});
}

void check(const ScaledIndexAddBwdParams& p, WeightTypes taken) {
  const Check check{"scaled_index_add_backward"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.num_indices, p.middle, p.width});
  check.weight("scaling", p.scaling_dtype, p.dtype, taken, p.scaling || p.dscaling);
  const bool any = p.num_indices > 0 && p.middle > 0 && p.width > 0 && p.rows > 0;
  check.given(any && (p.dsource.data || p.dscaling), {p.dout.data, p.index});
  check.given(any && p.dscaling, {p.source.data});
}

void check(const IndexSelectCatParams& p) {
  const Check check{"index_select_cat"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.num_selections});
  check.given(p.num_selections > 0, {p.selections});
  for (int64_t i = 0; i < p.num_selections; ++i) {
    const RowSelection& s = p.selections[i];
    check.sizes({s.source_rows, s.width, s.num_rows});
    check.given(s.num_rows > 0, {s.index});
    check.given(s.num_rows > 0 && s.width > 0, {s.packed});
    check.given(s.source_rows > 0 && s.width > 0, {s.source});
  }
}

void check(const SoftmaxFwdParams& p) { check_softmax({"softmax"}, p.shape, p.x, p.out); }

void check(const SoftmaxBwdParams& p) {
  check_softmax({"softmax_backward"}, p.shape, p.out, p.dout);
  check_softmax({"softmax_backward"}, p.shape, p.dx, p.dout);
}

void check(const LinearAttentionFwdParams& p) {
  check_linear_attention(p.shape, p.in);
  const bool any = p.shape.num_sequences > 0 && p.shape.num_heads > 0 && p.shape.seqlen_q > 0;
  const Check check{"linear_attention"};
  check.given(any && p.shape.head_dim_v > 0, {p.out.data});
  check.given(any && p.shape.normalize, {p.denominator});
}

void check(const LinearAttentionBwdParams& p) {
  check_linear_attention(p.shape, p.in);
  const bool any = p.shape.num_sequences > 0 && p.shape.num_heads > 0;
  const Check check{"linear_attention_backward"};
  check.given(any && p.shape.seqlen_q > 0, {p.dq.data});
  check.given(any && p.shape.seqlen_q > 0 && p.shape.head_dim_v > 0, {p.dout.data});
  check.given(any && p.shape.seqlen_q > 0 && p.shape.head_dim_v > 0 && p.shape.normalize, {p.out.data, p.denominator});
  check.given(any && p.shape.seqlen_k > 0, {p.dk.data});
  check.given(any && p.shape.seqlen_k > 0 && p.shape.head_dim_v > 0, {p.dv.data});
  check.given(any && p.shape.seqlen_k > 0 && p.in.log_decay, {p.dlog_decay});
}

void check(const GateFwdParams& p) {
  const Check check{"silu_gate"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.width});
  check.given(p.rows > 0 && p.width > 0, {p.x1.data, p.x2.data, p.h.data});
}

void check(const GateBwdParams& p) {
  const Check check{"silu_gate_backward"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.width});
  check.given(p.rows > 0 && p.width > 0, {p.x1.data, p.x2.data, p.dh.data, p.dx1.data, p.dx2.data});
}

void check(const MergeFwdParams& p) { check_merge(p.shape, p.parts, p.out.data); }

void check(const MergeBwdParams& p) {
  check_merge(p.shape, p.parts, p.dout.data);
  check_merge(p.shape, p.grads, p.dout.data);
}

void check(const RopePaddedParams& p) {
  const Check check{"rope_padded"};
  check_head(check, p.dtype, p.head_dim);
  check.sizes({p.num_queries, p.num_keys, p.groups, p.heads_q, p.heads_kv, p.batch});
  check.given(p.batch > 0, {p.q_starts, p.k_starts, p.k_lengths});
  check.given(p.num_queries > 0 && p.groups > 0 && p.heads_q > 0, {p.q.data, p.out_q.data});
  check.given(p.num_queries > 0 && p.groups > 0 && p.heads_kv > 0, {p.k.data, p.v.data});
  check.given(p.num_queries > 0 && p.num_keys > 0 && p.groups > 0 && p.heads_kv > 0, {p.cache_k.data, p.cache_v.data});
}

void check(const RotaryParams& p) {
  const Check check{"rotary"};
  check_head(check, p.dtype, p.head_dim);
  check.sizes({p.outer, p.seqlen});
  check.given(p.outer > 0 && p.seqlen > 0, {p.x, p.out});
}

void check(const ProductParams& p) {
  const Check check{"product"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.m, p.n, p.k});
  if (size_of(p.dtype) != 2) check.fail("dtype", name_of(p.dtype), "bf16 or fp16", "use the usual product");
  check.given(p.m > 0 && p.n > 0, {p.out});
  check.given(p.m > 0 && p.n > 0 && p.k > 0, {p.a.data, p.b.data});
}

void check(const CsrSddmmParams& p) {
  const Check check{"sddmm"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch, p.depth});
  check_pattern(check, p.pattern, true);
  const bool any = p.batch > 0 && p.pattern.nnz > 0;
  check.given(any, {p.out});
  check.given(any && p.depth > 0, {p.a.data, p.b.data});
}

void check(const CsrSpmmParams& p) {
  const Check check{"spmm"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch, p.width});
  check_pattern(check, p.pattern, true);
  const bool any = p.batch > 0 && p.width > 0;
  check.given(any && p.pattern.rows > 0, {p.out.data});
  check.given(any && p.pattern.nnz > 0, {p.values, p.dense.data});
}

void check(const CsrSoftmaxFwdParams& p) {
  const Check check{"sparse_softmax"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch});
  check_pattern(check, p.pattern, false);
  check.given(p.batch > 0 && p.pattern.nnz > 0, {p.values, p.out});
}

void check(const CsrSoftmaxBwdParams& p) {
  const Check check{"sparse_softmax_backward"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch});
  check_pattern(check, p.pattern, false);
  check.given(p.batch > 0 && p.pattern.nnz > 0, {p.out, p.dout, p.dx});
}

void check(const CsrTransposeParams& p) {
  const Check check{"csr_transpose"};
  check_pattern(check, p.pattern, true);
  check.given(true, {p.column_offsets});
  check.given(p.pattern.nnz > 0, {p.row_indices, p.places});
}

void check(const Sparse24PackParams& p) {
  const Check check{"sparse24"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.cols});
  check_sparse24_activation(check, p.activation);
  const bool any = p.rows > 0 && p.cols > 0;
  check.given(any, {p.x.data});
  check.given(any && p.mask_given, {p.mask.cells});
  check_packed(check, p.packed, any);
  check_packed(check, p.packed_t, any);
}

void check(const Sparse24DenseParams& p) {
  const Check check{"sparse24_apply_dense_output"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.cols});
  if (p.row_stride != 1 && p.col_stride != 1 && p.rows > 1 && p.cols > 1)
    check.fail("x", "of neither row- nor column-major order", "one of them", "make it contiguous");
  check.given(p.rows > 0 && p.cols > 0, {p.x, p.mask.cells, p.out});
}

void check(const Sparse24ActivationBwdParams& p) {
  const Check check{"sparse24_activation_backward"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.cols});
  check_sparse24_activation(check, p.activation);
  const bool any = p.rows > 0 && p.cols > 0;
  check.given(any, {p.x.data, p.dout.data, p.dx.data, p.mask.cells});
  check.given(any && p.x2.data, {p.dx2.data});
}

void check(const Sparse24UnpackParams& p) {
  const Check check{"sparse24_unpack"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.rows, p.cols});
  check.given(p.rows > 0 && p.cols > 0, {p.packed.values, p.packed.meta, p.out.data});
}

void check(const Sparse24ProductParams& p) {
  const Check check{"sparse24_product"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.m, p.n, p.k});
  check_sparse24_activation(check, p.activation);
  const bool any = p.m > 0 && p.n > 0;
  check.given(any, {p.out});
  check.given(any && p.k > 0, {p.a.values, p.a.meta, p.b});
  if (any && p.k > 1 && p.n > 1 && p.b_row != 1 && p.b_col != 1)
    check.fail("b", "of neither row- nor column-major order", "one of them", "make it contiguous");
}

void check(const BlockSddParams& p) {
  const Check check{"blocksparse_sdd"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch, p.depth});
  check_layout(check, p.layout);
  const bool any = p.batch > 0 && p.layout.nnz > 0;
  check.given(any, {p.out});
  check.given(any && p.depth > 0, {p.a.data, p.b.data});
}

void check(const BlockDsdParams& p) {
  const Check check{"blocksparse_dsd"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch, p.width});
  check_layout(check, p.layout);
  const bool any = p.batch > 0 && p.width > 0;
  check.given(any && p.layout.heads * p.layout.block_rows > 0, {p.out});
  check.given(any && p.layout.nnz > 0, {p.values, p.b.data});
}

void check(const BlockSoftmaxFwdParams& p) {
  const Check check{"blocksparse_softmax"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch});
  check_layout(check, p.layout);
  check.given(p.batch > 0 && p.layout.nnz > 0, {p.values, p.out});
}

void check(const BlockSoftmaxBwdParams& p) {
  const Check check{"blocksparse_softmax_backward"};
  check.dtype("dtype", p.dtype);
  check.sizes({p.batch});
  check_layout(check, p.layout);
  check.given(p.batch > 0 && p.layout.nnz > 0, {p.out, p.dout, p.dx});
}

}  // namespace xformers
