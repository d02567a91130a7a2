// The arguments of the operators of 2:4 sparsity.
#pragma once

#include "xformers/kernels/params/sparse24.h"
#include "xformers/ops/common/operator.h"

namespace xformers::ops {

// ---- rules, layouts, activations by name ----
Sparse24Rule to_sparse24_rule(const char* where, std::string_view algorithm);
enum class Sparse24Backend { kCutlass, kCusparselt };
Sparse24Backend to_sparse24_backend(const char* where, std::string_view backend);
Activation to_sparse24_activation(const char* where, std::string_view activation, bool gated);
void check_sparse24_gradient(const char* where, std::string_view gradient);

// A RuntimeError in the house form: "<where>: <got>, expected <expected>.  Fix: <fix>."
[[noreturn]] void refuse_sparse24(const char* where, const std::string& got, const std::string& expected,
                                  const std::string& fix);

// Tensors of a packed matrix [rows, cols], not yet written.
struct PackedPair {
  at::Tensor packed, meta;
};
PackedPair empty_packed(const at::Tensor& like, const c10::SymInt& rows, const c10::SymInt& cols,
                        Sparse24Backend backend);
std::vector<c10::SymInt> sparse24_mask_sizes(const c10::SymInt& rows, const c10::SymInt& cols);

void check_sparse24_input(const char* where, const at::Tensor& x, Sparse24Backend backend, bool any_stride = false);
void check_sparse24_masks(const char* where, const at::Tensor& masks, const at::Tensor& input);
void check_sparse24_packed(const char* where, const at::Tensor& packed, const at::Tensor& meta, const c10::SymInt& rows,
                           const c10::SymInt& cols, Sparse24Backend backend);

// ---- packing ----
struct Sparse24SparsifyBothWays {
  static constexpr const char* kName = "sparse24_sparsify_both_ways";
  static constexpr const char* kResults[] = {"packed", "meta", "packed_t", "meta_t", "threads_masks"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor input;
  std::string_view algorithm = "", backend = "cutlass";

  static constexpr auto arguments() {
    using A = Sparse24SparsifyBothWays;
    return std::tuple{arg("input", &A::input), arg("algorithm", &A::algorithm), arg("backend", &A::backend)};
  }
  void check() const;
  Result empty() const;
};

// One orientation, for inference.
struct Sparse24Sparsify {
  static constexpr const char* kName = "sparse24_sparsify";
  static constexpr const char* kResults[] = {"packed", "meta"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor input;
  std::string_view algorithm = "", backend = "cutlass";

  static constexpr auto arguments() {
    using A = Sparse24Sparsify;
    return std::tuple{arg("input", &A::input), arg("algorithm", &A::algorithm), arg("backend", &A::backend)};
  }
  void check() const;
  Result empty() const;
};

struct Sparse24Apply {
  static constexpr const char* kName = "sparse24_apply";
  static constexpr const char* kResults[] = {"packed", "meta", "packed_t", "meta_t"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor input, threads_masks;
  std::string_view backend = "cutlass";

  static constexpr auto arguments() {
    using A = Sparse24Apply;
    return std::tuple{arg("input", &A::input), arg("threads_masks", &A::threads_masks), arg("backend", &A::backend)};
  }
  void check() const;
  Result empty() const;
};

struct Sparse24ApplyDenseOutput {
  static constexpr const char* kName = "sparse24_apply_dense_output";
  using Result = at::Tensor;
  at::Tensor input, threads_masks;
  double mul0 = 0, mul1 = 1;

  static constexpr auto arguments() {
    using A = Sparse24ApplyDenseOutput;
    return std::tuple{arg("input", &A::input), arg("threads_masks", &A::threads_masks), arg("mul0", &A::mul0),
                      arg("mul1", &A::mul1)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(input.sym_sizes(), input.options()); }
};

// The same as a dense matrix again.
struct Sparse24Unpack {
  static constexpr const char* kName = "sparse24_unpack";
  using Result = at::Tensor;
  at::Tensor packed, meta;
  c10::SymInt rows = 0, cols = 0;
  std::string_view backend = "cutlass";

  static constexpr auto arguments() {
    using A = Sparse24Unpack;
    return std::tuple{arg("packed", &A::packed), arg("meta", &A::meta), arg("rows", &A::rows).required(),
                      arg("cols", &A::cols).required(), arg("backend", &A::backend)};
  }
  void check() const { check_sparse24_packed(kName, packed, meta, rows, cols, to_sparse24_backend(kName, backend)); }
  at::Tensor empty() const { return empty_result({rows, cols}, packed.options()); }
};

// activation(x), or silu(x) * x2 ("swiglu"), packed both ways.
struct Sparse24Activation {
  static constexpr const char* kName = "sparse24_activation";
  static constexpr const char* kResults[] = {"packed", "meta", "packed_t", "meta_t", "threads_masks"};
  using Result = Sparse24SparsifyBothWays::Result;
  at::Tensor x;
  std::string_view activation = "";
  OptionalTensor x2{};
  std::string_view algorithm = "", backend = "cutlass";

  static constexpr auto arguments() {
    using A = Sparse24Activation;
    return std::tuple{arg("x", &A::x), arg("activation", &A::activation).required(), arg("x2", &A::x2),
                      arg("algorithm", &A::algorithm), arg("backend", &A::backend)};
  }
  void check() const;
  Result empty() const;
};

struct Sparse24ActivationBackward {
  static constexpr const char* kName = "sparse24_activation_backward";
  static constexpr const char* kResults[] = {"dx", "dx2"};  // dx2: of shape [0] without an x2
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor grad_out, x, threads_masks;
  std::string_view activation = "";
  OptionalTensor x2{};

  static constexpr auto arguments() {
    using A = Sparse24ActivationBackward;
    return std::tuple{arg("grad_out", &A::grad_out), arg("x", &A::x), arg("threads_masks", &A::threads_masks),
                      arg("activation", &A::activation).required(), arg("x2", &A::x2)};
  }
  void check() const;
  Result empty() const { return {empty_result(x), empty_result(x, x2.has_value())}; }
};

// ---- products ----
// activation(A b + bias), A [rows, cols] packed, b [cols, n]; the result [rows, n], or [n, rows] where it is wanted so.
struct Sparse24Product {
  static constexpr const char* kName = "sparse24_product";
  using Result = at::Tensor;
  at::Tensor packed, meta, b;
  c10::SymInt rows = 0, cols = 0;
  OptionalTensor bias{};
  bool bias_per_row = true, transpose_result = false;
  std::string_view backend = "cutlass", activation = "";

  static constexpr auto arguments() {
    using A = Sparse24Product;
    return std::tuple{arg("packed", &A::packed),
                      arg("meta", &A::meta),
                      arg("b", &A::b),
                      arg("rows", &A::rows).required(),
                      arg("cols", &A::cols).required(),
                      arg("bias", &A::bias),
                      arg("bias_per_row", &A::bias_per_row),
                      arg("transpose_result", &A::transpose_result),
                      arg("backend", &A::backend),
                      arg("activation", &A::activation)};
  }
  void check() const;
  at::Tensor empty() const {
    return empty_result(transpose_result ? std::vector<c10::SymInt>{b.sym_size(1), rows}
                                         : std::vector<c10::SymInt>{rows, b.sym_size(1)},
                        b.options());
  }
};

// The packed matrix as tall and as wide as its padding.
struct Sparse24Gemm {
  static constexpr const char* kName = "_sparse24_gemm";
  using Result = at::Tensor;
  at::Tensor a, b, meta_reordered;

  static constexpr auto arguments() {
    using A = Sparse24Gemm;
    return std::tuple{arg("a", &A::a), arg("b", &A::b), arg("meta_reordered", &A::meta_reordered)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result({a.sym_size(0), b.sym_size(1)}, b.options()); }
};

// ---- masks ----
struct Sparse24LargestMask2d {
  static constexpr const char* kName = "sparse24_largest_mask_2d";
  using Result = at::Tensor;
  at::Tensor input;

  static constexpr auto arguments() { return std::tuple{arg("input", &Sparse24LargestMask2d::input)}; }
  void check() const;
  at::Tensor empty() const { return empty_result(input); }
};

struct Sparse24LargestWithKrandomMask2d {
  static constexpr const char* kName = "sparse24_largest_with_Krandom_mask_2d";
  using Result = at::Tensor;
  at::Tensor input;
  int64_t n = 0;

  static constexpr auto arguments() {
    using A = Sparse24LargestWithKrandomMask2d;
    return std::tuple{arg("input", &A::input), arg("n", &A::n).required()};
  }
  void check() const;
  at::Tensor empty() const { return empty_result(input); }
};

// A mask [R, C] of two in any four columns as words of metadata [R, C / 16].
struct Sparse24PackMask {
  static constexpr const char* kName = "_sparse24_pack_mask";
  using Result = at::Tensor;
  at::Tensor input;

  static constexpr auto arguments() { return std::tuple{arg("input", &Sparse24PackMask::input)}; }
  void check() const;
  at::Tensor empty() const {
    return empty_result({input.sym_size(0), input.sym_size(1) / 16}, input.options().dtype(at::kShort));
  }
};

// Words [R, C / 16] in the order of the cutlass layout's meta: [R, 2, C / 32].
struct Sparse24ReorderMeta {
  static constexpr const char* kName = "_sparse24_reorder_meta";
  using Result = at::Tensor;
  at::Tensor input;

  static constexpr auto arguments() { return std::tuple{arg("input", &Sparse24ReorderMeta::input)}; }
  void check() const;
  at::Tensor empty() const;
};

struct Sparse24PackTensorAccordingToMask {
  static constexpr const char* kName = "_sparse24_pack_tensor_according_to_mask";
  using Result = at::Tensor;
  at::Tensor a, meta;

  static constexpr auto arguments() {
    using A = Sparse24PackTensorAccordingToMask;
    return std::tuple{arg("a", &A::a), arg("meta", &A::meta)};
  }
  void check() const;
  at::Tensor empty() const { return empty_result({a.sym_size(0), a.sym_size(1) / 2}, a.options()); }
};

// ---- layers ----
struct Sparse24Linear {
  static constexpr const char* kName = "sparse24_linear";
  using Result = at::Tensor;
  at::Tensor x, weight;
  OptionalTensor bias{};
  std::string_view algorithm = "", gradient = "24dense", backend = "cutlass";

  static constexpr auto arguments() {
    using A = Sparse24Linear;
    return std::tuple{arg("x", &A::x),
                      arg("weight", &A::weight),
                      arg("bias", &A::bias),
                      arg("algorithm", &A::algorithm),
                      arg("gradient", &A::gradient),
                      arg("backend", &A::backend)};
  }
  void check() const;
  at::Tensor empty() const;
};

struct Sparse24ActivatedLinear {
  static constexpr const char* kName = "sparse24_activated_linear";
  using Result = at::Tensor;
  at::Tensor z, weight;
  OptionalTensor bias{};
  std::string_view activation = "gelu", algorithm = "";

  static constexpr auto arguments() {
    using A = Sparse24ActivatedLinear;
    return std::tuple{arg("z", &A::z), arg("weight", &A::weight), arg("bias", &A::bias),
                      arg("activation", &A::activation), arg("algorithm", &A::algorithm)};
  }
  void check() const;
  at::Tensor empty() const;
};

}  // namespace xformers::ops
