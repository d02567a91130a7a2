// Schema, checks, product and gradients. Grids travel as flat lists, row by row, with the sizes of the tiles.
#include "xformers/ops/tiled_matmul/tiled_matmul.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>
#include <torch/library.h>

#include <algorithm>
#include <string>

#include "xformers/ops/common/arguments.h"
#include "xformers/ops/common/gradient_node.h"
#include "xformers/ops/common/stack.h"
#include "xformers/ops/product/product.h"

namespace xformers::ops {
namespace {

using Sizes = c10::SymIntArrayRef;
using TiledMatmul = std::vector<at::Tensor>(at::TensorList a, at::TensorList b, Sizes ms, Sizes ns, Sizes ks);

XFORMERS_TYPED_OP(tiled_matmul_op, TiledMatmul, "tiled_matmul")

std::string tile_name(const char* grid, size_t row, size_t column) {
  return std::string(grid) + "[" + std::to_string(row) + "][" + std::to_string(column) + "]";
}

void check_grid(const ArgumentCheck& check, const char* name, at::TensorList tiles, Sizes rows, Sizes columns) {
  if (tiles.empty()) check.fail(name, "empty", "at least one tile", "leave the call out");
  if (tiles.size() != rows.size() * columns.size()) {
    check.fail(std::string("the number of tiles of ") + name, std::to_string(tiles.size()),
               std::to_string(rows.size()) + " x " + std::to_string(columns.size()), "give a regular grid");
  }
  for (size_t i = 0; i < tiles.size(); ++i) {
    const std::string tile = tile_name(name, i / columns.size(), i % columns.size());
    check.shape(tile.c_str(), tiles[i], {rows[i / columns.size()], columns[i % columns.size()]},
                "tiles of one grid row share their height, of one grid column their width");
  }
}

void check_tiles(at::TensorList a, at::TensorList b, Sizes ms, Sizes ns, Sizes ks) {
  const ArgumentCheck check("tiled_matmul");
  check_grid(check, "a", a, ms, ks);
  check_grid(check, "b", b, ks, ns);
  check.floating("a[0][0]", a[0]);
  for (const auto& [name, tiles] : {std::pair{"a", a}, std::pair{"b", b}}) {
    for (const at::Tensor& tile : tiles) {
      check.same_dtype(name, tile, a[0], "a[0][0]");
      check.same_device(name, tile, a[0], "a[0][0]");
    }
  }
}

// Tiles that lie in memory like parts of one matrix, side by side along `dim`, as that matrix; else undefined.
at::Tensor merged_view(at::TensorList tiles, int64_t dim) {
  const at::Tensor& first = tiles[0];
  if (!is_eager(first)) return at::Tensor();
  int64_t offset = first.storage_offset(), size = 0;
  for (const at::Tensor& tile : tiles) {
    if (!tile.is_alias_of(first) || tile.strides() != first.strides() || tile.storage_offset() != offset) return {};
    offset += tile.size(dim) * tile.stride(dim);
    size += tile.size(dim);
  }
  c10::DimVector sizes(first.sizes());
  sizes[dim] = size;
  return first.as_strided(sizes, first.strides());
}

at::Tensor merged(at::TensorList tiles, int64_t dim) {
  const at::Tensor view = merged_view(tiles, dim);
  return view.defined() ? view : at::cat(tiles, dim);
}

// out[m][n] from row m of a and column n of b. Where the element type is its own compute type, products are added up in
// place; others are merged first, since a partial sum must not be rounded.
std::vector<at::Tensor> multiply(at::TensorList a, at::TensorList b, Sizes ms, Sizes ns, Sizes ks) {
  check_tiles(a, b, ms, ns, ks);
  const size_t count_m = ms.size(), count_n = ns.size(), count_k = ks.size();
  const bool merge = count_k > 1 && compute_dtype(a[0]) != a[0].scalar_type();
  const auto column = [&](size_t n) {
    std::vector<at::Tensor> tiles;
    for (size_t k = 0; k < count_k; ++k) tiles.push_back(b[k * count_n + n]);
    return tiles;
  };
  std::vector<at::Tensor> merged_columns, out;
  for (size_t n = 0; merge && n < count_n; ++n) merged_columns.push_back(merged(column(n), 0));
  for (size_t m = 0; m < count_m; ++m) {
    const at::TensorList row = a.slice(m * count_k, count_k);
    const at::Tensor merged_row = merge ? merged(row, 1) : at::Tensor();
    for (size_t n = 0; n < count_n; ++n) {
      if (merge) {
        out.push_back(product(merged_row, merged_columns[n]));
        continue;
      }
      at::Tensor sum = product(row[0], b[n]);
      for (size_t k = 1; k < count_k; ++k) sum.addmm_(row[k], b[k * count_n + n]);
      out.push_back(std::move(sum));
    }
  }
  return out;
}

// The grid of the transposed matrix, each tile a transposed view.
std::vector<at::Tensor> transposed(at::TensorList tiles, size_t rows, size_t columns) {
  std::vector<at::Tensor> result;
  for (size_t column = 0; column < columns; ++column) {
    for (size_t row = 0; row < rows; ++row) result.push_back(tiles[row * columns + column].t());
  }
  return result;
}

// Saved: tiles of a, then of b; their counts, then ms, ns and ks.
torch::autograd::variable_list gradients(const torch::autograd::variable_list& grads, const SavedForGradient& s) {
  const auto count_m = static_cast<size_t>(s.numbers[0]), count_n = static_cast<size_t>(s.numbers[1]),
             count_k = static_cast<size_t>(s.numbers[2]);
  const Sizes sizes(s.sizes);
  const Sizes ms = sizes.slice(0, count_m), ns = sizes.slice(count_m, count_n), ks = sizes.slice(count_m + count_n);
  const at::TensorList saved(s.tensors);
  const at::TensorList a = saved.slice(0, count_m * count_k), b = saved.slice(count_m * count_k);
  std::vector<at::Tensor> dc;
  for (size_t i = 0; i < grads.size(); ++i) {
    dc.push_back(grads[i].defined() ? grads[i] : a[0].new_zeros_symint({ms[i / count_n], ns[i % count_n]}));
  }
  const auto any = [&](size_t begin, size_t end) {
    return std::find(s.wanted.begin() + begin, s.wanted.begin() + end, true) != s.wanted.begin() + end;
  };
  torch::autograd::variable_list result(a.size() + b.size());
  if (any(0, a.size())) {
    const auto da = tiled_matmul_op().call(dc, transposed(b, count_k, count_n), ms, ks, ns);
    std::copy(da.begin(), da.end(), result.begin());
  }
  if (any(a.size(), result.size())) {
    const auto db = tiled_matmul_op().call(transposed(a, count_m, count_k), dc, ks, ns, ms);
    std::copy(db.begin(), db.end(), result.begin() + a.size());
  }
  return result;
}

std::vector<at::Tensor> multiply_autograd(at::TensorList a, at::TensorList b, Sizes ms, Sizes ns, Sizes ks) {
  check_tiles(a, b, ms, ns, ks);
  std::vector<at::Tensor> inputs = a.vec();
  inputs.insert(inputs.end(), b.begin(), b.end());
  const auto node = GradientNode::record("XformersTiledMatmulBackward", gradients, inputs);
  std::vector<at::Tensor> out = below_autograd([&] { return tiled_matmul_op().call(a, b, ms, ns, ks); });
  if (!node) return out;
  std::vector<c10::SymInt> sizes = ms.vec();
  sizes.insert(sizes.end(), ns.begin(), ns.end());
  sizes.insert(sizes.end(), ks.begin(), ks.end());
  node->save(inputs, {double(ms.size()), double(ns.size()), double(ks.size())}, std::move(sizes));
  for (at::Tensor& tile : out) tile = with_history(std::move(tile), node);
  return out;
}

// The same operator under the name that programs know.
std::vector<at::Tensor> tiled_matmul_fwd(at::TensorList a, at::TensorList b, Sizes ms, Sizes ns, Sizes ks) {
  return tiled_matmul_op().call(a, b, ms, ns, ks);
}

}  // namespace

TileGrid tiled_matmul(const TileGrid& a, const TileGrid& b) {
  std::vector<at::Tensor> flat_a, flat_b;
  for (const auto& row : a) flat_a.insert(flat_a.end(), row.begin(), row.end());
  for (const auto& row : b) flat_b.insert(flat_b.end(), row.begin(), row.end());
  const ArgumentCheck check("tiled_matmul");
  if (flat_a.empty() || flat_b.empty() || a[0].empty() || b[0].empty()) {
    check.fail("a or b", "empty", "at least one tile", "leave the call out");
  }
  std::vector<c10::SymInt> ms, ns, ks;
  for (const auto& row : a) {
    if (row.empty()) check.fail("a", "irregular", "rows of one length", "give a regular grid");
    check.dims("a[m][0]", row[0], 2, "2-D tiles");
    ms.push_back(row[0].sym_size(0));
  }
  for (const at::Tensor& tile : b[0]) {
    check.dims("b[0][n]", tile, 2, "2-D tiles");
    ns.push_back(tile.sym_size(1));
  }
  for (const at::Tensor& tile : a[0]) {
    check.dims("a[0][k]", tile, 2, "2-D tiles");
    ks.push_back(tile.sym_size(1));
  }
  const std::vector<at::Tensor> flat = tiled_matmul_op().call(flat_a, flat_b, ms, ns, ks);
  TileGrid out;
  for (size_t m = 0; m < ms.size(); ++m) {
    out.emplace_back(flat.begin() + m * ns.size(), flat.begin() + (m + 1) * ns.size());
  }
  return out;
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("tiled_matmul(Tensor[] a, Tensor[] b, SymInt[] ms, SymInt[] ns, SymInt[] ks) -> Tensor[]",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_FRAGMENT(xformers_python, m) {
  m.def("tiled_matmul_fwd(Tensor[] a, Tensor[] b, SymInt[] ms, SymInt[] ns, SymInt[] ks) -> Tensor[]",
        xformers::ops::tiled_matmul_fwd);
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) { m.impl("tiled_matmul", xformers::ops::multiply); }

TORCH_LIBRARY_IMPL(xformers, Autograd, m) { m.impl("tiled_matmul", xformers::ops::multiply_autograd); }
