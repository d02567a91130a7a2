// 2:4 sparsity on CPU tensors.
#include "xformers/kernels/cpu/sparse24/sparse24_cpu.h"

#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "xformers/ops/common/threads.h"
#include "xformers/ops/common/to_params.h"
#include "xformers/ops/sparse24/sparse24_op.h"

namespace xformers::ops {
namespace {

// ---- to parameters ----
Sparse24Packed to_packed(const at::Tensor& packed, const at::Tensor& meta, int64_t cols, Sparse24Backend backend) {
  const bool square = backend == Sparse24Backend::kCusparselt;
  return {.values = const_cast<void*>(packed.const_data_ptr()),
          .value_stride = square ? cols / 2 : packed.size(1),
          .meta = reinterpret_cast<uint16_t*>(const_cast<int16_t*>(meta.const_data_ptr<int16_t>())),
          .meta_block = square ? 256 : packed.size(0) * 2,
          .meta_group = square ? cols / 32 * 256 : 256};
}

Sparse24Mask to_mask(const at::Tensor& masks) {
  return {reinterpret_cast<uint16_t*>(const_cast<uint8_t*>(masks.const_data_ptr<uint8_t>())), masks.size(1) * 4};
}

// Metadata as it lies in memory by the layout; given in another order, a copy.
at::Tensor in_order(const at::Tensor& meta, Sparse24Backend backend) {
  if (backend == Sparse24Backend::kCusparselt) return meta.contiguous();
  return meta.permute({2, 0, 1}).contiguous().permute({1, 2, 0});
}

at::Tensor with_a_unit_stride(const at::Tensor& t) {
  const bool fits = t.size(0) <= 1 || t.size(1) <= 1 ? t.is_contiguous() : t.stride(0) == 1 || t.stride(1) == 1;
  return fits ? t : t.contiguous();
}

// ---- packing ----
// Where results are wanted: those of packed_t, meta_t and masks may be undefined.
void pack(const at::Tensor& x, Sparse24PackParams p, const Sparse24SparsifyBothWays::Result& out,
          Sparse24Backend backend) {
  const auto& [packed, meta, packed_t, meta_t, masks] = out;
  p.dtype = to_dtype(x.scalar_type());
  p.rows = x.size(0);
  p.cols = x.size(1);
  p.x = to_rows(x);
  if (packed.defined()) p.packed = to_packed(packed, meta, p.cols, backend);
  if (packed_t.defined()) p.packed_t = to_packed(packed_t, meta_t, p.rows, backend);
  if (masks.defined()) p.mask = to_mask(masks);
  cpu::sparse24_pack(p, torch_threads());
  if (backend == Sparse24Backend::kCutlass) return;
  for (const auto& [buffer, words] : {std::pair{packed, meta}, std::pair{packed_t, meta_t}}) {
    if (!buffer.defined()) continue;
    const int64_t values = x.numel() / 2;
    buffer.narrow(0, values, buffer.numel() - values).view(at::kShort).copy_(words.view({-1}));
  }
}

Sparse24SparsifyBothWays::Result sparsify_both_ways_cpu(const Sparse24SparsifyBothWays& args) {
  args.check();
  const auto out = args.empty();
  const at::Tensor x = with_unit_last_stride(args.input);
  pack(x, {.rule = to_sparse24_rule(args.kName, args.algorithm)}, out, to_sparse24_backend(args.kName, args.backend));
  return out;
}

Sparse24Sparsify::Result sparsify_cpu(const Sparse24Sparsify& args) {
  args.check();
  const auto [packed, meta] = args.empty();
  const at::Tensor x = with_unit_last_stride(args.input);
  pack(x, {.rule = to_sparse24_rule(args.kName, args.algorithm)}, {packed, meta, {}, {}, {}},
       to_sparse24_backend(args.kName, args.backend));
  return {packed, meta};
}

Sparse24Apply::Result apply_cpu(const Sparse24Apply& args) {
  args.check();
  const auto [packed, meta, packed_t, meta_t] = args.empty();
  const at::Tensor x = with_unit_last_stride(args.input), masks = args.threads_masks.contiguous();
  pack(x, {.mask_given = true}, {packed, meta, packed_t, meta_t, masks}, to_sparse24_backend(args.kName, args.backend));
  return {packed, meta, packed_t, meta_t};
}

at::Tensor apply_dense_output_cpu(const Sparse24ApplyDenseOutput& args) {
  args.check();
  at::Tensor out = args.empty();
  const at::Tensor masks = args.threads_masks.contiguous(), &x = args.input;
  cpu::sparse24_dense({.dtype = to_dtype(x.scalar_type()),
                       .rows = x.size(0),
                       .cols = x.size(1),
                       .x = x.const_data_ptr(),
                       .row_stride = x.stride(0),
                       .col_stride = x.size(1) == 1 ? 1 : x.stride(1),
                       .mask = to_mask(masks),
                       .mul0 = args.mul0,
                       .mul1 = args.mul1,
                       .out = out.mutable_data_ptr()},
                      torch_threads());
  return out;
}

at::Tensor unpack_cpu(const Sparse24Unpack& args) {
  args.check();
  const Sparse24Backend backend = to_sparse24_backend(args.kName, args.backend);
  at::Tensor out = args.empty();
  const at::Tensor packed = args.packed.contiguous(), meta = in_order(args.meta, backend);
  cpu::sparse24_unpack({.dtype = to_dtype(packed.scalar_type()),
                        .rows = out.size(0),
                        .cols = out.size(1),
                        .packed = to_packed(packed, meta, out.size(1), backend),
                        .out = to_rows(out)},
                       torch_threads());
  return out;
}

Sparse24Activation::Result activation_cpu(const Sparse24Activation& args) {
  args.check();
  const auto out = args.empty();
  const at::Tensor x = with_unit_last_stride(args.x), x2 = args.x2 ? with_unit_last_stride(*args.x2) : at::Tensor();
  pack(x,
       {.activation = to_sparse24_activation(args.kName, args.activation, args.x2.has_value()),
        .x2 = to_rows(x2),
        .rule = to_sparse24_rule(args.kName, args.algorithm)},
       out, to_sparse24_backend(args.kName, args.backend));
  return out;
}

Sparse24ActivationBackward::Result activation_backward_cpu(const Sparse24ActivationBackward& args) {
  args.check();
  auto [dx, dx2] = args.empty();
  const at::Tensor x = with_unit_last_stride(args.x), grad_out = with_unit_last_stride(args.grad_out);
  const at::Tensor x2 = args.x2 ? with_unit_last_stride(*args.x2) : at::Tensor();
  const at::Tensor masks = args.threads_masks.contiguous();
  cpu::sparse24_activation_backward(
      {.dtype = to_dtype(x.scalar_type()),
       .rows = x.size(0),
       .cols = x.size(1),
       .activation = to_sparse24_activation(args.kName, args.activation, args.x2.has_value()),
       .x = to_rows(x),
       .x2 = to_rows(x2),
       .dout = to_rows(grad_out),
       .mask = to_mask(masks),
       .dx = to_rows(dx),
       .dx2 = x2.defined() ? to_rows(dx2) : Rows{}},
      torch_threads());
  return {dx, dx2};
}

// ---- products ----
at::Tensor product_cpu(const Sparse24Product& args) {
  args.check();
  const Sparse24Backend backend = to_sparse24_backend(args.kName, args.backend);
  at::Tensor out = args.empty();
  const at::Tensor packed = args.packed.contiguous(), meta = in_order(args.meta, backend);
  const at::Tensor b = with_a_unit_stride(args.b), bias = args.bias ? args.bias->contiguous() : at::Tensor();
  const int64_t m = args.rows.expect_int(), k = args.cols.expect_int(), n = b.size(1);
  cpu::sparse24_product(
      {.dtype = to_dtype(b.scalar_type()),
       .m = m,
       .n = n,
       .k = k,
       .a = to_packed(packed, meta, k, backend),
       .b = b.const_data_ptr(),
       .b_row = n == 1 && b.stride(1) == 1 ? b.stride(0)
                : k == 1                   ? n
                                           : b.stride(0),
       .b_col = n == 1 ? (b.stride(0) == 1 ? k : 1) : b.stride(1),
       .bias = data_or_null(bias),
       .bias_per_row = args.bias_per_row,
       .activation = args.activation.empty() ? Activation::kNone
                                             : to_sparse24_activation(args.kName, args.activation, /*gated=*/false),
       .out = out.mutable_data_ptr(),
       .out_stride = args.transpose_result ? m : n,
       .out_transposed = args.transpose_result},
      torch_threads());
  return out;
}

at::Tensor gemm_cpu(const Sparse24Gemm& args) {
  args.check();
  return product_cpu(
      {.packed = args.a, .meta = args.meta_reordered, .b = args.b, .rows = args.a.size(0), .cols = args.a.size(1) * 2});
}

// ---- masks ----
at::Tensor largest_mask_cpu(const Sparse24LargestMask2d& args) {
  args.check();
  at::Tensor masks = at::empty_symint(sparse24_mask_sizes(args.input.sym_size(0), args.input.sym_size(1)),
                                      args.input.options().dtype(at::kByte));
  pack(args.input, {}, {{}, {}, {}, {}, masks}, Sparse24Backend::kCutlass);
  return apply_dense_output_cpu({at::ones_like(args.input), masks});
}

// Of a tile's values the first 8 - n by the rule, the others as the low bits of the values have it.
at::Tensor krandom_mask_cpu(const Sparse24LargestWithKrandomMask2d& args) {
  args.check();
  const at::Tensor x = args.input.to(at::kFloat).contiguous();
  at::Tensor mask = at::zeros(x.sizes(), x.options());
  const int64_t rows = x.size(0), cols = x.size(1);
  const float* values = x.const_data_ptr<float>();
  float* kept = mask.mutable_data_ptr<float>();
  for (int64_t tile = 0; tile < rows * cols / 16; ++tile) {
    const int64_t corner = tile / (cols / 4) * 4 * cols + tile % (cols / 4) * 4;
    const auto place = [&](int i) { return corner + i / 4 * cols + i % 4; };
    std::array<int, 16> order;
    for (int i = 0; i < 16; ++i) order[static_cast<size_t>(i)] = i;
    std::array<int, 4> in_row{}, in_col{};
    int count = 0;
    const auto keep_up_to = [&](int limit) {
      for (int i : order) {
        auto &row = in_row[static_cast<size_t>(i / 4)], &col = in_col[static_cast<size_t>(i % 4)];
        if (count == limit || row == 2 || col == 2 || kept[place(i)] != 0) continue;
        kept[place(i)] = 1;
        ++row, ++col, ++count;
      }
    };
    std::stable_sort(order.begin(), order.end(), [&](int i, int j) {
      const float a = values[place(i)], b = values[place(j)];
      return std::isnan(a) || std::isnan(b) ? std::isnan(a) && !std::isnan(b) : a > b;
    });
    keep_up_to(8 - static_cast<int>(args.n));
    std::array<uint32_t, 16> draws;
    for (int i = 0; i < 16; ++i) {
      uint32_t bits;
      std::memcpy(&bits, values + place(i), sizeof bits);
      draws[static_cast<size_t>(i)] = (bits >> 13 ^ static_cast<uint32_t>(i) * 0x9e3779b9u) * 0x85ebca6bu;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int i, int j) { return draws[static_cast<size_t>(i)] < draws[static_cast<size_t>(j)]; });
    keep_up_to(8);
  }
  return mask.to(args.input.scalar_type());
}

at::Tensor pack_mask_cpu(const Sparse24PackMask& args) {
  args.check();
  at::Tensor out = args.empty();
  const at::Tensor mask = args.input.contiguous();
  const bool* kept = mask.const_data_ptr<bool>();
  auto* words = out.mutable_data_ptr<int16_t>();
  for (int64_t word = 0; word < out.numel(); ++word) {
    uint32_t bits = 0;
    for (int64_t four = 0; four < 4; ++four) {
      const bool* columns = kept + word * 16 + four * 4;
      int found = 0;
      for (uint32_t i = 0; i < 4; ++i) {
        if (!columns[i]) continue;
        if (found < 2) bits |= i << (4 * four + 2 * found);
        ++found;
      }
      if (found != 2) {
        const int64_t row = word * 16 / mask.size(1), col = word * 16 % mask.size(1) + four * 4;
        refuse_sparse24(args.kName,
                        std::string(found < 2 ? "not enough values" : "too many values") + ": row " +
                            std::to_string(row) + " has " + std::to_string(found) + " in columns " +
                            std::to_string(col) + " to " + std::to_string(col + 3),
                        "2", "");
      }
    }
    words[word] = static_cast<int16_t>(bits);
  }
  return out;
}

at::Tensor reorder_meta_cpu(const Sparse24ReorderMeta& args) {
  args.check();
  at::Tensor out = args.empty();
  const at::Tensor meta = args.input.contiguous();
  const Sparse24Packed to{.meta_block = meta.size(0) * 2, .meta_group = 256};
  const auto* from = meta.const_data_ptr<int16_t>();
  auto* words = out.mutable_data_ptr<int16_t>();
  for (int64_t row = 0; row < meta.size(0); ++row) {
    for (int64_t word = 0; word < meta.size(1); ++word)
      words[to.meta_word(row, word)] = from[row * meta.size(1) + word];
  }
  return out;
}

at::Tensor pack_tensor_cpu(const Sparse24PackTensorAccordingToMask& args) {
  args.check();
  const int64_t rows = args.a.size(0), cols = args.a.size(1), words = cols / 16;
  const bool ordered = args.meta.dim() == 3;
  const at::Tensor meta = ordered ? in_order(args.meta, Sparse24Backend::kCutlass) : args.meta.contiguous();
  const auto* from = meta.const_data_ptr<int16_t>();
  const Sparse24Packed order{.meta_block = rows * 2, .meta_group = 256};
  at::Tensor index = at::empty({rows, cols / 2}, args.a.options().dtype(at::kLong));
  auto* to = index.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t slot = 0; slot < cols / 2; ++slot) {
      const int64_t word = slot / 8;
      const auto bits = static_cast<uint16_t>(from[ordered ? order.meta_word(row, word) : row * words + word]);
      to[row * (cols / 2) + slot] = slot / 2 * 4 + (bits >> (2 * (slot % 8)) & 3);
    }
  }
  return args.a.gather(1, index);
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_IMPL(xformers, CPU, m) {
  using namespace xformers::ops;
  implement<sparsify_both_ways_cpu>(m);
  implement<sparsify_cpu>(m);
  implement<apply_cpu>(m);
  implement<apply_dense_output_cpu>(m);
  implement<unpack_cpu>(m);
  implement<activation_cpu>(m);
  implement<activation_backward_cpu>(m);
  implement<product_cpu>(m);
  implement<gemm_cpu>(m);
  implement<largest_mask_cpu>(m);
  implement<krandom_mask_cpu>(m);
  implement<pack_mask_cpu>(m);
  implement<reorder_meta_cpu>(m);
  implement<pack_tensor_cpu>(m);
}
