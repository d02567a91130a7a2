// Schema, checks, product and gradients. Grids travel as flat lists, row by row, with the sizes of the tiles.
#include "xformers/ops/tiled_matmul/tiled_matmul.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <string>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/common/product.h"
#include "xformers/ops/common/stack.h"

namespace xformers::ops {
namespace {

using Sizes = c10::SymIntArrayRef;

struct TiledMatmul {
  static constexpr const char* kName = "tiled_matmul";
  using Result = std::vector<at::Tensor>;
  at::TensorList a{}, b{};
  Sizes ms{}, ns{}, ks{};

  static constexpr auto arguments() {
    using A = TiledMatmul;
    return std::tuple{arg("a", &A::a), arg("b", &A::b), arg("ms", &A::ms), arg("ns", &A::ns), arg("ks", &A::ks)};
  }
  void check() const;
};

std::string tile_name(const char* grid, size_t row, size_t column) {
  return std::string(grid) + "[" + std::to_string(row) + "][" + std::to_string(column) + "]";
}

void check_grid(const Check& check, const char* name, at::TensorList tiles, Sizes rows, Sizes columns) {
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

void TiledMatmul::check() const {
  const Check check(kName);
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
std::vector<at::Tensor> multiply_tiles(const TiledMatmul& args) {
  args.check();
  const auto& [a, b, ms, ns, ks] = args;
  const size_t count_m = ms.size(), count_n = ns.size(), count_k = ks.size();
  const bool merge = count_k > 1 && compute_dtype(a[0]) != a[0].scalar_type();
  const auto column = [&, &b = args.b](size_t n) {
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

struct TiledMatmulKept {
  static constexpr const char* kNode = "XformersTiledMatmulBackward";
  std::vector<at::Tensor> a{}, b{};
  std::vector<c10::SymInt> ms{}, ns{}, ks{};
  static constexpr auto members() {
    using K = TiledMatmulKept;
    return std::tuple{&K::a, &K::b, &K::ms, &K::ns, &K::ks};
  }

  // Of the tiles of a, then of those of b.
  variable_list gradients(const variable_list& grads, const Wanted& wanted) const {
    std::vector<at::Tensor> dc;
    for (size_t i = 0; i < grads.size(); ++i) {
      dc.push_back(grads[i].defined() ? grads[i] : a[0].new_zeros_symint({ms[i / ns.size()], ns[i % ns.size()]}));
    }
    const auto any = [&](size_t begin, size_t end) {
      return std::find(wanted.inputs.begin() + begin, wanted.inputs.begin() + end, true) != wanted.inputs.begin() + end;
    };
    variable_list result(a.size() + b.size());
    if (any(0, a.size())) {
      const std::vector<at::Tensor> bt = transposed(b, ks.size(), ns.size());
      const std::vector<at::Tensor> da = call(TiledMatmul{dc, bt, ms, ks, ns});
      std::copy(da.begin(), da.end(), result.begin());
    }
    if (any(a.size(), result.size())) {
      const std::vector<at::Tensor> a_t = transposed(a, ms.size(), ks.size());
      const std::vector<at::Tensor> db = call(TiledMatmul{a_t, dc, ks, ns, ms});
      std::copy(db.begin(), db.end(), result.begin() + a.size());
    }
    return result;
  }
};

std::vector<at::Tensor> multiply_autograd(const TiledMatmul& args) {
  args.check();
  const auto node = record<TiledMatmulKept>(args.a, args.b);
  std::vector<at::Tensor> out = below_autograd(args);
  if (!node) return out;
  for (at::Tensor& tile : out) tile = with_history(std::move(tile), node);
  node->keep({args.a.vec(), args.b.vec(), args.ms.vec(), args.ns.vec(), args.ks.vec()});
  return out;
}

// The same operator under the name that programs know.
std::vector<at::Tensor> tiled_matmul_fwd(at::TensorList a, at::TensorList b, Sizes ms, Sizes ns, Sizes ks) {
  return call(TiledMatmul{a, b, ms, ns, ks});
}

// A grid as it is passed between languages: its tiles row by row, and how many each row has.
struct FlatGrid {
  const char* name;
  at::TensorList tiles;
  at::IntArrayRef columns;

  void check() const {
    const Check check(TiledMatmul::kName);
    if (tiles.empty() || columns[0] == 0) check.fail(name, "empty", "at least one tile", "leave the call out");
    for (const int64_t count : columns) {
      if (count != columns[0]) check.fail(name, "irregular", "rows of one length", "give a regular grid");
    }
    for (size_t i = 0; i < tiles.size(); ++i) {
      check.dims(tile_name(name, i / columns[0], i % columns[0]).c_str(), tiles[i], 2, "2-D tiles");
    }
  }
};

// The product of two grids, and its sizes: heights of a's rows, widths of b's columns.
struct GridProduct {
  std::vector<c10::SymInt> ms, ns;
  std::vector<at::Tensor> tiles;
};

GridProduct multiply(const FlatGrid& a, const FlatGrid& b) {
  a.check();
  b.check();
  std::vector<c10::SymInt> ms, ns, ks;
  for (size_t i = 0; i < a.tiles.size(); i += a.columns[0]) ms.push_back(a.tiles[i].sym_size(0));
  for (int64_t i = 0; i < a.columns[0]; ++i) ks.push_back(a.tiles[i].sym_size(1));
  for (int64_t i = 0; i < b.columns[0]; ++i) ns.push_back(b.tiles[i].sym_size(1));
  std::vector<at::Tensor> tiles = call(TiledMatmul{a.tiles, b.tiles, ms, ns, ks});
  return {std::move(ms), std::move(ns), std::move(tiles)};
}

std::vector<at::Tensor> multiply_grids(at::TensorList a, at::IntArrayRef a_columns, at::TensorList b,
                                       at::IntArrayRef b_columns) {
  return multiply({"a", a, a_columns}, {"b", b, b_columns}).tiles;
}

void multiply_grids_out(at::TensorList a, at::IntArrayRef a_columns, at::TensorList b, at::IntArrayRef b_columns,
                        at::TensorList out, at::IntArrayRef out_columns) {
  const at::NoGradGuard no_grad;
  const FlatGrid grid{"out", out, out_columns};
  grid.check();
  const GridProduct product = multiply({"a", a, a_columns}, {"b", b, b_columns});
  check_grid(Check(TiledMatmul::kName), grid.name, out, product.ms, product.ns);
  for (size_t i = 0; i < out.size(); ++i) out[i].copy_(product.tiles[i]);
}

}  // namespace

TileGrid tiled_matmul(const TileGrid& a, const TileGrid& b) {
  const auto flat = [](const TileGrid& grid) {
    std::pair<std::vector<at::Tensor>, std::vector<int64_t>> result;
    for (const auto& row : grid) {
      result.first.insert(result.first.end(), row.begin(), row.end());
      result.second.push_back(static_cast<int64_t>(row.size()));
    }
    return result;
  };
  const auto [a_tiles, a_columns] = flat(a);
  const auto [b_tiles, b_columns] = flat(b);
  const GridProduct product = multiply({"a", a_tiles, a_columns}, {"b", b_tiles, b_columns});
  TileGrid out;
  for (auto tile = product.tiles.begin(); tile != product.tiles.end(); tile += product.ns.size()) {
    out.emplace_back(tile, tile + product.ns.size());
  }
  return out;
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<TiledMatmul>(m);
  // Grids as Python has them.
  m.def("tiled_matmul_grids(Tensor[] a, int[] a_columns, Tensor[] b, int[] b_columns) -> Tensor[]", multiply_grids);
  m.def(
      "tiled_matmul_grids_out(Tensor[] a, int[] a_columns, Tensor[] b, int[] b_columns, Tensor(a!)[] out, "
      "int[] out_columns) -> ()",
      multiply_grids_out);
}

TORCH_LIBRARY_FRAGMENT(xformers_python, m) {
  m.def("tiled_matmul_fwd(Tensor[] a, Tensor[] b, SymInt[] ms, SymInt[] ns, SymInt[] ks) -> Tensor[]",
        xformers::ops::tiled_matmul_fwd);
}

TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  xformers::ops::implement<xformers::ops::multiply_tiles>(m);
}

TORCH_LIBRARY_IMPL(xformers, Autograd, m) { xformers::ops::implement<xformers::ops::multiply_autograd>(m); }
