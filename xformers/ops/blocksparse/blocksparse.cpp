// Schemas, public functions, checks, and what LibTorch's operators say.
#include "xformers/ops/blocksparse/blocksparse.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "xformers/ops/blocksparse/blocksparse_op.h"
#include "xformers/ops/csr/csr.h"

namespace xformers::ops {
namespace {

void check_table(const Check& check, const char* name, const at::Tensor& table, const at::Tensor& beside) {
  check.dims(name, table, 1, "[n] int32");
  if (table.scalar_type() != at::kInt) check.fail(name, describe(table), "int32", "make it with blocksparse_tables");
  check.same_device(name, table, beside, "the matrices");
}

void check_blocks(const Check& check, const char* name, const at::Tensor& values, const at::Tensor& column_indices) {
  check.dims(name, values, 4, "[batch, nnz, block, block]");
  check.floating(name, values);
  const c10::SymInt block = values.sym_size(2);
  check.shape(name, values, {values.sym_size(0), column_indices.sym_size(0), block, block},
              "one square block per column index");
}

void check_block(const Check& check, const c10::SymInt& block) {
  if (block < 16 || block % 16 != 0) {
    check.fail("block", std::to_string(block.expect_int()), "a multiple of 16", "use larger blocks");
  }
}

// How many blocks lie along `size` elements.
c10::SymInt blocks_along(const Check& check, const char* name, const c10::SymInt& size, const c10::SymInt& block) {
  if (size % block != 0) {
    check.fail(name, std::to_string(size.expect_int()), "a multiple of block = " + std::to_string(block.expect_int()),
               "pad it");
  }
  return size / block;
}

template <class Op>
void check_tables(const Check& check, const Op& op, const at::Tensor& beside, const c10::SymInt& rows,
                  const c10::SymInt& columns) {
  check_table(check, "row_offsets", op.row_offsets, beside);
  check_table(check, "column_indices", op.column_indices, beside);
  check.shape("row_offsets", op.row_offsets, {rows + 1}, "one more than rows of blocks of all heads");
  if (!op.row_offsets_t && !op.column_indices_t && !op.perm) return;
  if (!op.row_offsets_t || !op.column_indices_t || !op.perm) {
    check.fail("the layout by columns", "given in part", "row_offsets_t, column_indices_t and perm, or none of them",
               "give what blocksparse_tables returns");
  }
  const c10::SymInt nnz = op.column_indices.sym_size(0);
  check_table(check, "row_offsets_t", *op.row_offsets_t, beside);
  check_table(check, "column_indices_t", *op.column_indices_t, beside);
  check_table(check, "perm", *op.perm, beside);
  check.shape("row_offsets_t", *op.row_offsets_t, {columns + 1}, "one more than columns of blocks of all heads");
  check.shape("column_indices_t", *op.column_indices_t, {nnz}, "one row per block");
  check.shape("perm", *op.perm, {nnz}, "one number per block");
}

}  // namespace

void BlockSdd::check() const {
  const Check check(kName);
  for (const auto& [name, t] : {std::pair{"a", &a}, {"b", &b}}) {
    check.dims(name, *t, 4, "[batch, heads, rows, columns]");
    check.floating(name, *t);
  }
  check.same_dtype("b", b, a, "a");
  check.same_device("b", b, a, "a");
  check_block(check, block);
  check.shape("b", b, {a.sym_size(0), a.sym_size(1), a.sym_size(3), b.sym_size(3)},
              "a [batch, heads, m, k], b [batch, "
              "heads, k, n]");
  const c10::SymInt rows = blocks_along(check, "a.size(2)", a.sym_size(2), block);
  const c10::SymInt columns = blocks_along(check, "b.size(3)", b.sym_size(3), block);
  check_tables(check, *this, a, a.sym_size(1) * rows, a.sym_size(1) * columns);
}

void BlockDsd::check() const {
  const Check check(kName);
  check_table(check, "column_indices", column_indices, values);
  check_blocks(check, "values", values, column_indices);
  check.dims("b", b, 4, "[batch, heads, rows, columns]");
  check.same_dtype("b", b, values, "values");
  check.same_device("b", b, values, "values");
  check.equal("b.size(0)", b.sym_size(0), values.sym_size(0), "values and b have one batch size");
  const c10::SymInt block = values.sym_size(2), heads = b.sym_size(1);
  check_block(check, block);
  const c10::SymInt out_rows = heads * blocks_along(check, "m", m, block);
  const c10::SymInt b_rows = heads * blocks_along(check, "b.size(2)", b.sym_size(2), block);
  check_tables(check, *this, values, transposed ? b_rows : out_rows, transposed ? out_rows : b_rows);
}

void BlockSoftmax::check() const {
  const Check check(kName);
  check_table(check, "row_offsets", row_offsets, values);
  check_table(check, "column_indices", column_indices, values);
  check_blocks(check, "values", values, column_indices);
  check_block(check, block());
  if (heads < 1 || (row_offsets.sym_size(0) - 1) % heads != 0) {
    check.fail("heads", std::to_string(heads.expect_int()), "a divisor of the number of rows of blocks",
               "pass the first size of the layout");
  }
  blocks_along(check, "n", n, block());
  if (!bias) return;
  check.dims("bias", *bias, 4, "[batch, heads, rows, columns]");
  check.same_dtype("bias", *bias, values, "values");
  check.same_device("bias", *bias, values, "values");
  const std::vector<c10::SymInt> sizes{values.sym_size(0), heads, block_rows() * block(), n};
  for (int64_t i = 0; i < 4; ++i) {
    if (bias->sym_size(i) == 1) continue;
    check.equal(("bias.size(" + std::to_string(i) + ")").c_str(), bias->sym_size(i), sizes[i], "or a size of 1");
  }
}

void BlockSoftmaxBackward::check() const {
  const Check check(kName);
  check_table(check, "row_offsets", row_offsets, out);
  check_table(check, "column_indices", column_indices, out);
  check_blocks(check, "out", out, column_indices);
  check_block(check, out.sym_size(2));
  check.like("grad_out", grad_out, out, "out", "it has the shape of the result");
}

namespace {

// [batch, heads, m, n] with sizes of 1, of a mask with fewer dimensions; bool: -inf where False.
at::Tensor to_bias(const at::Tensor& mask, const at::Tensor& values) {
  at::Tensor bias = mask;
  while (bias.dim() < 4) bias = bias.unsqueeze(0);
  if (mask.scalar_type() != at::kBool) return bias.to(values.scalar_type());
  return at::zeros_symint(bias.sym_sizes(), values.options())
      .masked_fill(bias.logical_not(), -std::numeric_limits<double>::infinity());
}

at::Tensor softmax_of_parts(const at::Tensor& values, const at::Tensor& row_offsets, const at::Tensor& column_indices,
                            c10::SymInt heads, c10::SymInt n, double scale, bool is_causal,
                            const OptionalTensor& rel_logits, const OptionalTensor& attn_mask,
                            const OptionalTensor& key_padding_mask) {
  const Check check("blocksparse_softmax");
  OptionalTensor bias;
  const auto add = [&](const char* name, const OptionalTensor& mask) {
    if (!mask) return;
    if (mask->dim() > 4) check.fail(name, describe(*mask), "at most 4 dimensions", "flatten it");
    const at::Tensor next = to_bias(*mask, values);
    bias = bias ? *bias + next : next;
  };
  add("rel_logits", rel_logits);
  add("attn_mask", attn_mask);
  if (key_padding_mask) {
    check.dims("key_padding_mask", *key_padding_mask, 2, "[batch, columns]");
    add("key_padding_mask", key_padding_mask->unsqueeze(1).unsqueeze(1));
  }
  return call(BlockSoftmax{values, row_offsets, column_indices, heads, n, bias, scale, is_causal});
}

at::Tensor dense_of_parts(const at::Tensor& values, const at::Tensor& row_offsets, const at::Tensor& column_indices,
                          c10::SymInt heads, c10::SymInt n) {
  const Check check("blocksparse_to_dense");
  check.dims("values", values, 4, "[batch, nnz, block, block]");
  const c10::SymInt batch = values.sym_size(0), nnz = values.sym_size(1), block = values.sym_size(2);
  const c10::SymInt columns = blocks_along(check, "n", n, block), rows = row_offsets.sym_size(0) - 1;
  const at::Tensor row = at::searchsorted(row_offsets, at::arange(nnz, row_offsets.options()), false, true) - 1;
  const at::Tensor blocks = at::zeros_symint({batch, rows * columns, block, block}, values.options())
                                .index_copy(1, row * columns + column_indices, values);
  return blocks.view_symint({batch, heads, rows / heads, columns, block, block})
      .transpose(3, 4)
      .reshape_symint({batch, heads, rows / heads * block, n});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> tables_of(const at::Tensor& layout) {
  const BlockTables tables = block_tables(layout);
  return {tables.row_offsets, tables.column_indices, tables.row_offsets_t, tables.column_indices_t, tables.perm};
}

}  // namespace

BlockTables block_tables(const at::Tensor& layout) {
  const Check check("blocksparse_tables");
  check.dims("layout", layout, 3, "[heads, block rows, block columns]");
  if (layout.is_floating_point()) check.fail("layout", describe(layout), "bool or integers", "compare it first");
  const int64_t heads = layout.size(0), rows = layout.size(1), columns = layout.size(2);
  const at::Tensor host = layout.cpu().ne(0);
  const auto [blocks, offsets, column] = csr_from_dense(host.reshape({1, heads * rows, columns}));
  const BlockTables tables = transpose_blocks(offsets, column, heads, columns);
  const at::Device device = layout.device();
  return {tables.row_offsets.to(device), tables.column_indices.to(device), tables.row_offsets_t.to(device),
          tables.column_indices_t.to(device), tables.perm.to(device)};
}

// All heads as one matrix, whose columns of head i lie behind those of i - 1.
BlockTables transpose_blocks(const at::Tensor& row_offsets, const at::Tensor& column_indices, int64_t heads,
                             int64_t block_columns) {
  const int64_t rows = std::max<int64_t>((row_offsets.size(0) - 1) / std::max<int64_t>(heads, 1), 1);
  const at::Tensor place = at::arange(column_indices.size(0), row_offsets.options());
  const at::Tensor row = at::searchsorted(row_offsets, place, /*out_int32=*/true, /*right=*/true) - 1;
  const at::Tensor column = column_indices + row.div(rows, "floor") * block_columns;
  const CsrTransposed turned = csr_transpose({row_offsets, column.to(at::kInt)}, heads * block_columns);
  return {row_offsets, column_indices, turned.row_offsets, turned.column_indices.remainder(rows), turned.perm};
}

at::Tensor block_sdd(const at::Tensor& a, const at::Tensor& b, const BlockTables& l, int64_t block) {
  return call(BlockSdd{a, b, l.row_offsets, l.column_indices, block, l.row_offsets_t, l.column_indices_t, l.perm});
}

at::Tensor block_dsd(const at::Tensor& values, const at::Tensor& b, const BlockTables& l, int64_t m, bool transposed) {
  return call(
      BlockDsd{values, b, l.row_offsets, l.column_indices, m, l.row_offsets_t, l.column_indices_t, l.perm, transposed});
}

at::Tensor block_softmax(const at::Tensor& values, const BlockTables& l, int64_t heads, int64_t n, double scale,
                         const BlockMasks& masks) {
  return softmax_of_parts(values, l.row_offsets, l.column_indices, heads, n, scale, masks.causal, masks.rel_logits,
                          masks.attn_mask, masks.key_padding_mask);
}

at::Tensor block_to_dense(const at::Tensor& values, const BlockTables& l, int64_t heads, int64_t n) {
  return dense_of_parts(values, l.row_offsets, l.column_indices, heads, n);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<BlockSdd, BlockDsd, BlockSoftmax, BlockSoftmaxBackward>(m);
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "blocksparse_tables(Tensor layout) -> (Tensor row_offsets, Tensor column_indices, Tensor row_offsets_t, "
      "Tensor column_indices_t, Tensor perm)",
      tags);
  m.def(
      "blocksparse_softmax(Tensor values, Tensor row_offsets, Tensor column_indices, SymInt heads, SymInt n, "
      "float scale=1.0, bool is_causal=False, Tensor? rel_logits=None, Tensor? attn_mask=None, "
      "Tensor? key_padding_mask=None) -> Tensor",
      tags);
  m.def(
      "blocksparse_to_dense(Tensor values, Tensor row_offsets, Tensor column_indices, SymInt heads, SymInt n) -> "
      "Tensor",
      tags);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("blocksparse_tables", xformers::ops::tables_of);
  m.impl("blocksparse_softmax", xformers::ops::softmax_of_parts);
  m.impl("blocksparse_to_dense", xformers::ops::dense_of_parts);
}
