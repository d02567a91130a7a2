// Schemas, public functions, checks, and what results look like before they are written.
#include "xformers/ops/sparse24/sparse24.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include "xformers/ops/sparse24/sparse24_op.h"

namespace xformers::ops {
namespace {

// The sizes of a packed matrix in the cutlass layout.
c10::SymInt to_multiple(const c10::SymInt& x, int64_t of) { return (x + (of - 1)) / of * of; }

void refuse_cuda(const char* where, const at::Tensor& t) {
  if (!t.is_cuda()) return;
  refuse_sparse24(where, "input is on " + t.device().str(), "a CPU tensor, as CUDA has no kernels for 2:4 sparsity yet",
                  "move it to the CPU, or use a dense layer");
}

void check_dense_operand(const Check& check, const char* where, const at::Tensor& b, const at::Tensor& packed,
                         const c10::SymInt& k) {
  refuse_cuda(where, b);
  check.dims("b", b, 2, "[k, n]");
  check.floating("b", b);
  check.same_device("b", b, packed, "the packed matrix");
  check.same_dtype("b", b, packed, "the packed matrix");
  check.equal("b.size(0)", b.sym_size(0), k, "it is the number of the sparse matrix's columns");
}

std::string sizes_text(const at::Tensor& t) { return describe_shape(t.sym_sizes()); }

}  // namespace

void refuse_sparse24(const char* where, const std::string& got, const std::string& expected, const std::string& fix) {
  TORCH_CHECK(false, where, ": ", got, ", expected ", expected, ".", fix.empty() ? "" : "  Fix: ", fix,
              fix.empty() ? "" : ".");
}

Sparse24Rule to_sparse24_rule(const char* where, std::string_view algorithm) {
  if (algorithm.empty() || algorithm == "largest_values_greedy") return Sparse24Rule::kLargest;
  if (algorithm == "largest_abs_values_greedy") return Sparse24Rule::kLargestAbs;
  if (algorithm == "causal1122") return Sparse24Rule::kCausal1122;
  refuse_sparse24(where, "Unknown algorithm \"" + std::string(algorithm) + "\"",
                  R"(one of "", "largest_values_greedy", "largest_abs_values_greedy", "causal1122")", "");
}

Sparse24Backend to_sparse24_backend(const char* where, std::string_view backend) {
  if (backend == "cutlass") return Sparse24Backend::kCutlass;
  if (backend == "cusparselt") return Sparse24Backend::kCusparselt;
  refuse_sparse24(where, "Unknown backend \"" + std::string(backend) + "\"", R"("cutlass" or "cusparselt")", "");
}

Activation to_sparse24_activation(const char* where, std::string_view activation, bool gated) {
  if (gated) {
    if (activation == "swiglu") return Activation::kNone;
    refuse_sparse24(where, "activation is \"" + std::string(activation) + "\" beside an x2", "\"swiglu\"",
                    "leave x2 out, or pass \"swiglu\"");
  }
  if (activation == "relu") return Activation::kRelu;
  if (activation == "squared_relu") return Activation::kSquaredRelu;
  if (activation == "gelu") return Activation::kGelu;
  if (activation == "gelu_exact") return Activation::kGeluExact;
  refuse_sparse24(where, "activation is \"" + std::string(activation) + "\"",
                  R"(one of "relu", "squared_relu", "gelu", "gelu_exact", or "swiglu" with an x2)", "");
}

void check_sparse24_gradient(const char* where, std::string_view gradient) {
  if (gradient == "24dense" || gradient == "24sparse" || gradient == "ste") return;
  Check(where).fail("gradient", "\"" + std::string(gradient) + "\"", R"("24dense", "24sparse" or "ste")",
                    "it says what becomes of the weight's");
}

PackedPair empty_packed(const at::Tensor& like, const c10::SymInt& rows, const c10::SymInt& cols,
                        Sparse24Backend backend) {
  if (backend == Sparse24Backend::kCusparselt) {
    // Values, then metadata, in one buffer; and metadata by itself, since no result of an operator may be part of
    // another.
    const c10::SymInt words = rows * cols / 16;
    return {at::empty_symint({rows * cols / 2 + words * 2 / static_cast<int64_t>(like.element_size())}, like.options()),
            at::empty_symint({rows / 128, cols / 32, 256}, like.options().dtype(at::kShort))};
  }
  const c10::SymInt tall = to_multiple(rows, 32), wide = to_multiple(cols, 64);
  return {at::empty_symint({tall, wide / 2}, like.options()),
          at::empty_strided_symint({tall, 2, wide / 32}, {2, 1, tall * 2}, like.options().dtype(at::kShort))};
}

std::vector<c10::SymInt> sparse24_mask_sizes(const c10::SymInt& rows, const c10::SymInt& cols) {
  return {(rows + 31) / 32 * 4, (cols + 63) / 64 * 8, 8};
}

void check_sparse24_input(const char* where, const at::Tensor& x, Sparse24Backend backend, bool any_stride) {
  if (x.dim() != 2) {
    refuse_sparse24(where, "x has " + std::to_string(x.dim()) + (x.dim() == 1 ? " dimension" : " dimensions"), "2",
                    "flatten the leading ones, or use Linear24");
  }
  Check(where).floating("x", x);
  refuse_cuda(where, x);
  if (!any_stride && x.sym_stride(1) != 1 && x.sym_size(1) > 1) {
    refuse_sparse24(where, "x.stride(1) is " + c10::str(x.sym_stride(1)), "1",
                    "sparsify x.t() and transpose the result");
  }
  if (backend == Sparse24Backend::kCusparselt && (x.sym_size(0) % 128 != 0 || x.sym_size(1) % 128 != 0)) {
    refuse_sparse24(where, "x is " + sizes_text(x), "multiples of 128 with backend=\"cusparselt\"",
                    "pad it, or use backend=\"cutlass\", which takes any size");
  }
}

void check_sparse24_masks(const char* where, const at::Tensor& masks, const at::Tensor& input) {
  const std::vector<c10::SymInt> expected = sparse24_mask_sizes(input.sym_size(0), input.sym_size(1));
  if (masks.sym_sizes() != c10::SymIntArrayRef(expected)) {
    refuse_sparse24(where, "threads_masks is " + sizes_text(masks),
                    describe_shape(expected) + " for input " + sizes_text(input), "");
  }
  if (masks.scalar_type() != at::kByte) {
    refuse_sparse24(where, "threads_masks is " + describe(masks), "uint8",
                    "pass what sparse24_sparsify_both_ways gave");
  }
  Check(where).same_device("threads_masks", masks, input, "input");
}

void check_sparse24_packed(const char* where, const at::Tensor& packed, const at::Tensor& meta, const c10::SymInt& rows,
                           const c10::SymInt& cols, Sparse24Backend backend) {
  const Check check(where);
  check.floating("packed", packed);
  refuse_cuda(where, packed);
  check.same_device("meta", meta, packed, "packed");
  if (meta.scalar_type() != at::kShort) check.fail("meta", describe(meta), "int16", "pass it as it was made");
  if (backend == Sparse24Backend::kCusparselt) {
    if (rows % 128 != 0 || cols % 128 != 0)
      check.fail("the matrix", describe_shape({rows, cols}), "multiples of 128", "use backend=\"cutlass\"");
    check.shape("meta", meta, {rows / 128, cols / 32, 256}, "pass it as it was made");
    if (packed.dim() != 1 || packed.sym_numel() < rows * cols / 2)
      check.fail("packed", describe(packed), "one buffer of all values", "pass it as it was made");
    return;
  }
  const c10::SymInt tall = to_multiple(rows, 32), wide = to_multiple(cols, 64);
  check.shape("packed", packed, {tall, wide / 2}, "pass it as it was made");
  check.shape("meta", meta, {tall, 2, wide / 32}, "pass it as it was made");
}

// ---- packing ----
void Sparse24SparsifyBothWays::check() const {
  to_sparse24_rule("sparsify24", algorithm);
  check_sparse24_input("sparsify24", input, to_sparse24_backend("sparsify24", backend));
}
namespace {
Sparse24SparsifyBothWays::Result empty_both_ways(const at::Tensor& x, std::string_view backend_name) {
  const Sparse24Backend backend = to_sparse24_backend("sparsify24", backend_name);
  const c10::SymInt rows = x.sym_size(0), cols = x.sym_size(1);
  const PackedPair packed = empty_packed(x, rows, cols, backend), turned = empty_packed(x, cols, rows, backend);
  return {packed.packed, packed.meta, turned.packed, turned.meta,
          at::empty_symint(sparse24_mask_sizes(rows, cols), x.options().dtype(at::kByte))};
}
}  // namespace
Sparse24SparsifyBothWays::Result Sparse24SparsifyBothWays::empty() const { return empty_both_ways(input, backend); }

void Sparse24Sparsify::check() const { Sparse24SparsifyBothWays{input, algorithm, backend}.check(); }
Sparse24Sparsify::Result Sparse24Sparsify::empty() const {
  const PackedPair pair =
      empty_packed(input, input.sym_size(0), input.sym_size(1), to_sparse24_backend(kName, backend));
  return {pair.packed, pair.meta};
}

void Sparse24Apply::check() const {
  check_sparse24_input(kName, input, to_sparse24_backend(kName, backend), /*any_stride=*/true);
  check_sparse24_masks(kName, threads_masks, input);
}
Sparse24Apply::Result Sparse24Apply::empty() const {
  const auto [packed, meta, packed_t, meta_t, masks] = empty_both_ways(input, backend);
  return {packed, meta, packed_t, meta_t};
}

void Sparse24ApplyDenseOutput::check() const {
  check_sparse24_input(kName, input, Sparse24Backend::kCutlass, /*any_stride=*/true);
  check_sparse24_masks(kName, threads_masks, input);
  if (input.sym_stride(0) != 1 && input.sym_stride(1) != 1 && input.sym_size(0) > 1 && input.sym_size(1) > 1) {
    refuse_sparse24(kName, "input has strides " + describe_shape(input.sym_strides()), "row- or column-major order",
                    "make it contiguous");
  }
}

void Sparse24Activation::check() const {
  to_sparse24_rule(kName, algorithm);
  to_sparse24_activation(kName, activation, x2.has_value());
  check_sparse24_input(kName, x, to_sparse24_backend(kName, backend));
  if (!x2) return;
  Check(kName).like("x2", *x2, x, "x", "it multiplies silu(x)");
  check_sparse24_input(kName, *x2, Sparse24Backend::kCutlass);
}
Sparse24Activation::Result Sparse24Activation::empty() const { return empty_both_ways(x, backend); }

void Sparse24ActivationBackward::check() const {
  to_sparse24_activation(kName, activation, x2.has_value());
  check_sparse24_input(kName, x, Sparse24Backend::kCutlass, /*any_stride=*/true);
  check_sparse24_masks(kName, threads_masks, x);
  Check(kName).like("grad_out", grad_out, x, "x", "it has the shape of the result");
  if (x2) Check(kName).like("x2", *x2, x, "x", "it multiplies silu(x)");
}

// ---- products ----
void Sparse24Product::check() const {
  const Check check(kName);
  const Sparse24Backend layout = to_sparse24_backend(kName, backend);
  if (!activation.empty()) to_sparse24_activation(kName, activation, /*gated=*/false);
  check_sparse24_packed(kName, packed, meta, rows, cols, layout);
  check_dense_operand(check, kName, b, packed, cols);
  if (!bias) return;
  check.same_dtype("bias", *bias, b, "b");
  check.same_device("bias", *bias, b, "b");
  check.shape("bias", *bias, {bias_per_row ? rows : b.sym_size(1)}, "one for each row, or each column, of the result");
}

void Sparse24Gemm::check() const {
  ops::Check(kName).dims("a", a, 2, "[rows, k / 2]");
  const c10::SymInt rows = a.sym_size(0), cols = a.sym_size(1) * 2;
  check_sparse24_packed(kName, a, meta_reordered, rows, cols, Sparse24Backend::kCutlass);
  check_dense_operand(ops::Check(kName), kName, b, a, cols);
}

// ---- masks ----
namespace {
void check_mask_input(const char* where, const at::Tensor& x) {
  check_sparse24_input(where, x, Sparse24Backend::kCutlass, /*any_stride=*/true);
  if (!x.is_contiguous()) refuse_sparse24(where, "x is not contiguous", "a contiguous matrix", "call contiguous()");
  if (x.sym_size(0) % 4 != 0 || x.sym_size(1) % 4 != 0)
    refuse_sparse24(where, "x is " + sizes_text(x), "multiples of 4", "pad it");
}
void check_words(const char* where, const at::Tensor& t, int64_t cols) {
  if (t.dim() != 2 || t.sym_size(0) % 32 != 0 || t.sym_size(1) % cols != 0) {
    refuse_sparse24(where, "the matrix is " + sizes_text(t),
                    "two dimensions, multiples of 32 rows and " + std::to_string(cols) + " columns", "pad it");
  }
}
}  // namespace
void Sparse24LargestMask2d::check() const { check_mask_input(kName, input); }
void Sparse24LargestWithKrandomMask2d::check() const {
  check_mask_input(kName, input);
  if (n < 0 || n > 8) refuse_sparse24(kName, "n is " + std::to_string(n), "0 <= n <= 8", "a tile keeps 8 values");
}
void Sparse24PackMask::check() const {
  if (input.scalar_type() != at::kBool) refuse_sparse24(kName, "the mask is " + describe(input), "bool", "convert it");
  check_words(kName, input, 32);
}
void Sparse24ReorderMeta::check() const {
  if (input.scalar_type() != at::kShort) refuse_sparse24(kName, "meta is " + describe(input), "int16", "convert it");
  check_words(kName, input, 2);
}
at::Tensor Sparse24ReorderMeta::empty() const {
  const c10::SymInt rows = input.sym_size(0);
  return at::empty_strided_symint({rows, 2, input.sym_size(1) / 2}, {2, 1, rows * 2}, input.options());
}
void Sparse24PackTensorAccordingToMask::check() const {
  const ops::Check check(kName);
  check.floating("a", a);
  check_words(kName, a, 32);
  if (meta.dim() == 2) {
    check.shape("meta", meta, {a.sym_size(0), a.sym_size(1) / 16}, "a word for 16 columns");
  } else {
    check.shape("meta", meta, {a.sym_size(0), 2, a.sym_size(1) / 32}, "a word for 16 columns");
  }
  if (meta.scalar_type() != at::kShort) refuse_sparse24(kName, "meta is " + describe(meta), "int16", "convert it");
}

// ---- layers ----
namespace {
void check_linear(const char* where, const char* x_name, const at::Tensor& x, const at::Tensor& weight,
                  const OptionalTensor& bias) {
  const Check check(where);
  refuse_cuda(where, x);
  check.floating(x_name, x);
  if (x.dim() < 1) check.fail(x_name, describe(x), "at least one dimension", "pass [..., in]");
  check.dims("weight", weight, 2, "[out, in]");
  check.same_dtype("weight", weight, x, x_name);
  check.same_device("weight", weight, x, x_name);
  check.equal("weight.size(1)", weight.sym_size(1), x.sym_size(-1), "it is the last size of the input");
  if (!bias) return;
  check.same_dtype("bias", *bias, x, x_name);
  check.same_device("bias", *bias, x, x_name);
  check.shape("bias", *bias, {weight.sym_size(0)}, "one for each row of the weight");
}
at::Tensor empty_linear(const at::Tensor& x, const at::Tensor& weight) {
  std::vector<c10::SymInt> sizes = x.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return empty_result(sizes, x.options());
}
}  // namespace
void Sparse24Linear::check() const {
  to_sparse24_rule(kName, algorithm);
  check_linear(kName, "x", x, weight, bias);
  check_sparse24_input(kName, weight, to_sparse24_backend(kName, backend), /*any_stride=*/true);
  check_sparse24_gradient(kName, gradient);
}
at::Tensor Sparse24Linear::empty() const { return empty_linear(x, weight); }
void Sparse24ActivatedLinear::check() const {
  to_sparse24_rule(kName, algorithm);
  to_sparse24_activation(kName, activation, /*gated=*/false);
  check_linear(kName, "z", z, weight, bias);
}
at::Tensor Sparse24ActivatedLinear::empty() const { return empty_linear(z, weight); }

// ---- public functions ----
Sparse24Matrix sparsify24(const at::Tensor& x, std::string_view algorithm, std::string_view backend) {
  const auto [packed, meta, packed_t, meta_t, masks] = call(Sparse24SparsifyBothWays{x, algorithm, backend});
  return {packed, meta, packed_t, meta_t, masks, x.size(0), x.size(1)};
}

Sparse24Matrix sparsify24_one_way(const at::Tensor& x, std::string_view algorithm, std::string_view backend) {
  const auto [packed, meta] = call(Sparse24Sparsify{x, algorithm, backend});
  return {.packed = packed, .meta = meta, .rows = x.size(0), .cols = x.size(1)};
}

at::Tensor to_dense(const Sparse24Matrix& matrix, std::string_view backend) {
  return call(Sparse24Unpack{matrix.packed, matrix.meta, matrix.rows, matrix.cols, backend});
}

at::Tensor sparse24_matmul(const Sparse24Matrix& matrix, const at::Tensor& b, std::string_view backend) {
  return call(Sparse24Product{.packed = matrix.packed,
                              .meta = matrix.meta,
                              .b = b,
                              .rows = matrix.rows,
                              .cols = matrix.cols,
                              .backend = backend});
}

at::Tensor sparse24_linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                           std::string_view algorithm, std::string_view gradient, std::string_view backend) {
  return call(Sparse24Linear{x, weight, bias, algorithm, gradient, backend});
}

at::Tensor sparse24_linear(const at::Tensor& x, const Sparse24Matrix& weight, const OptionalTensor& bias,
                           std::string_view backend) {
  const Check check("sparse24_linear");
  if (x.dim() < 1) check.fail("x", describe(x), "at least one dimension", "pass [..., in]");
  check.equal("x.size(-1)", x.size(-1), weight.cols, "it is the number of the packed weight's columns");
  std::vector<int64_t> sizes = x.sizes().vec();
  const int64_t rows = c10::multiply_integers(sizes.begin(), sizes.end() - 1);
  sizes.back() = weight.rows;
  return call(Sparse24Product{.packed = weight.packed,
                              .meta = weight.meta,
                              .b = x.reshape({rows, weight.cols}).t(),
                              .rows = weight.rows,
                              .cols = weight.cols,
                              .bias = bias,
                              .transpose_result = true,
                              .backend = backend})
      .view(sizes);
}

at::Tensor sparse24_activated_linear(const at::Tensor& z, const at::Tensor& weight, const OptionalTensor& bias,
                                     std::string_view activation, std::string_view algorithm) {
  return call(Sparse24ActivatedLinear{z, weight, bias, activation, algorithm});
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<Sparse24SparsifyBothWays, Sparse24Sparsify, Sparse24Apply, Sparse24ApplyDenseOutput, Sparse24Unpack,
         Sparse24Activation, Sparse24ActivationBackward, Sparse24Product, Sparse24Gemm, Sparse24LargestMask2d,
         Sparse24LargestWithKrandomMask2d, Sparse24PackMask, Sparse24ReorderMeta, Sparse24PackTensorAccordingToMask,
         Sparse24Linear, Sparse24ActivatedLinear>(m);
}
