#include "xformers/nn/functional/attention_patterns.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <bit>
#include <cmath>

#include "xformers/ops/common/check.h"

namespace xformers::nn::functional {
namespace {

using ops::Check;
using ops::describe;

at::TensorOptions on(OptionalDevice device, at::ScalarType dtype) {
  return at::TensorOptions().device(device.value_or(at::kCPU)).dtype(dtype);
}
at::Device device_of(const OptionalGenerator& generator) {
  return generator && generator->defined() ? generator->device() : at::Device(at::kCPU);
}

void require(const Check& check, bool holds, const char* name, double got, const std::string& expected,
             const char* fix) {
  if (!holds) check.fail(name, c10::str(got), expected, fix);
}

int64_t points_of(const Check& check, at::IntArrayRef sizes) {
  if (sizes.empty()) check.fail("sizes", "[]", "at least one", "give the size of each coordinate");
  for (int64_t size : sizes) {
    require(check, size >= 0, "sizes", static_cast<double>(size), "no negative ones", "give the sizes of the grid");
  }
  return c10::multiply_integers(sizes);
}

// t [n, n] over coordinate `dim` of any two points of the grid: [1..n..1, 1..n..1].
at::Tensor over_coordinate(const at::Tensor& t, int64_t dim, int64_t dims) {
  std::vector<int64_t> shape(2 * dims, 1);
  shape[dim] = t.size(0);
  shape[dims + dim] = t.size(1);
  return t.view(shape);
}

// i - j of places along a coordinate.
at::Tensor differences(int64_t size, const at::TensorOptions& options) {
  const at::Tensor places = at::arange(size, options);
  return places.unsqueeze(1) - places;
}

// The distance in fp64, so that comparing it is exact where it is an integer.
at::Tensor exact_distance(const Check& check, at::IntArrayRef sizes, double p, at::ArrayRef<double> weights,
                          OptionalDevice device) {
  const int64_t points = points_of(check, sizes), dims = static_cast<int64_t>(sizes.size());
  require(check, p >= 0, "p", p, "at least 0", "2 is Euclid's");
  if (!weights.empty() && weights.size() != sizes.size()) {
    check.fail("weights", std::to_string(weights.size()) + " numbers", std::to_string(dims), "give one per coordinate");
  }
  c10::DimVector shape(sizes.begin(), sizes.end());
  shape.insert(shape.end(), sizes.begin(), sizes.end());
  at::Tensor sum = at::zeros(shape, on(device, at::kDouble));
  for (int64_t dim = 0; dim < dims; ++dim) {
    const double weight = weights.empty() ? 1 : weights[dim];
    at::Tensor apart = (differences(sizes[dim], on(device, at::kDouble)) * weight).abs();
    apart = over_coordinate(apart, dim, dims);
    if (std::isinf(p)) {
      sum = at::maximum(sum, apart);
    } else {
      sum += p == 0 ? apart.ne(0).to(at::kDouble) : apart.pow(p);
    }
  }
  if (p != 0 && !std::isinf(p)) sum = p == 2 ? sum.sqrt() : sum.pow(1 / p);
  return sum.view({points, points});
}

// same[i, j]: whether two places along a coordinate belong together; of both coordinates of a grid, of any two points.
at::Tensor in_both(const at::Tensor& rows, const at::Tensor& columns) {
  const int64_t points = rows.size(0) * columns.size(0);
  return (over_coordinate(rows, 0, 2) & over_coordinate(columns, 1, 2)).reshape({points, points});
}

// mask [..., rows * block, columns * block] -> [..., rows, block, columns, block]
at::Tensor as_blocks(const Check& check, const char* name, const at::Tensor& t, int64_t block_size) {
  require(check, block_size >= 1, "block_size", static_cast<double>(block_size), "at least 1", "16 to 128 are usual");
  if (t.size(-1) % block_size != 0 || t.size(-2) % block_size != 0) {
    check.fail(name, describe(t), "last dimensions that are multiples of block_size = " + std::to_string(block_size),
               "pad it, or choose another block_size");
  }
  c10::DimVector shape(t.sizes().begin(), t.sizes().end() - 2);
  for (int64_t size : t.sizes().slice(t.dim() - 2)) {
    shape.push_back(size / block_size);
    shape.push_back(block_size);
  }
  return t.reshape(shape);
}

}  // namespace

at::Tensor local_nd_distance(at::IntArrayRef sizes, double p, at::ArrayRef<double> weights, OptionalDevice device) {
  return exact_distance(Check("local_nd_distance"), sizes, p, weights, device).to(at::kFloat);
}

at::Tensor local_nd_gaussian_distribution(at::IntArrayRef sizes, double sigma, OptionalDevice device) {
  const Check check("local_nd_gaussian_distribution");
  require(check, sigma > 0, "sigma", sigma, "above 0", "give the width of the distribution");
  const at::Tensor distance = exact_distance(check, sizes, 2, {}, device);
  return at::exp(distance.square() / (-2 * sigma * sigma)).to(at::kFloat);
}

at::Tensor local_nd_pattern(at::IntArrayRef sizes, double distance, double p, OptionalDevice device) {
  return exact_distance(Check("local_nd_pattern"), sizes, p, {}, device) < distance;
}

at::Tensor axial_nd_pattern(at::IntArrayRef sizes, OptionalDevice device) {
  return exact_distance(Check("axial_nd_pattern"), sizes, 0, {}, device) < 2;
}

at::Tensor local_1d_pattern(int64_t seqlen, int64_t window_size, OptionalDevice device) {
  const Check check("local_1d_pattern");
  require(check, window_size > 0 && window_size % 2 == 1, "window_size", static_cast<double>(window_size),
          "an odd number", "it counts the token itself and as many before as after it");
  points_of(check, {seqlen});
  return differences(seqlen, on(device, at::kLong)).abs() <= window_size / 2;
}

at::Tensor causal_1d_pattern(int64_t seqlen, OptionalDevice device) {
  points_of(Check("causal_1d_pattern"), {seqlen});
  return at::ones({seqlen, seqlen}, on(device, at::kBool)).tril();
}

at::Tensor random_pattern(int64_t seqlen, double sparsity, OptionalGenerator generator, OptionalDevice device) {
  const Check check("random_pattern");
  require(check, sparsity > 0 && sparsity < 1, "sparsity", sparsity, "a number between 0 and 1",
          "it is the share of elements that are not seen");
  points_of(check, {seqlen});
  const at::Tensor drawn = at::rand({seqlen, seqlen}, generator, on(device_of(generator), at::kFloat));
  return (drawn > sparsity).to(on(device, at::kBool));
}

at::Tensor random_pattern_from_probability_matrix(const at::Tensor& probabilities, int64_t nnz,
                                                  OptionalGenerator generator) {
  const Check check("random_pattern_from_probability_matrix");
  const at::Tensor rates = probabilities.detach().to(device_of(generator), at::kDouble).reshape({-1});
  const int64_t possible = rates.gt(0).sum().item<int64_t>();
  if (nnz < 0 || nnz > possible) {
    check.fail("nnz", std::to_string(nnz), "0 to " + std::to_string(possible) + ", the probabilities above 0",
               "every element is drawn once at most");
  }
  // The first of independent clocks of rates w rings at w_i with probability w_i / sum(w), and so on.
  const at::Tensor times = at::empty_like(rates).exponential_(1, generator) / rates;
  const at::Tensor first = std::get<1>(times.topk(nnz, 0, /*largest=*/false, /*sorted=*/false));
  const at::Tensor mask = at::zeros(rates.sizes(), rates.options().dtype(at::kBool)).index_fill_(0, first, true);
  return mask.view(probabilities.sizes()).to(probabilities.device());
}

at::Tensor global_token_pattern(const at::Tensor& is_global) {
  const Check check("global_token_pattern");
  check.dims("attention_query_mask", is_global, 1, "[seqlen]");
  const at::Tensor global = is_global.to(at::kBool);
  return global.unsqueeze(1) | global;
}

at::Tensor swin_attention_pattern(int64_t height, int64_t width, int64_t window_size, int64_t shift_size,
                                  OptionalDevice device) {
  const Check check("swin_attention_pattern");
  require(check, window_size > 0, "window_size", static_cast<double>(window_size), "at least 1", "7 is usual");
  const std::string multiple = "a multiple of window_size = " + std::to_string(window_size);
  require(check, height % window_size == 0, "H", static_cast<double>(height), multiple, "pad the grid");
  require(check, width % window_size == 0, "W", static_cast<double>(width), multiple, "pad the grid");
  require(check, shift_size >= 0 && shift_size < window_size, "shift_size", static_cast<double>(shift_size),
          "0 to window_size - 1", "half a window is usual");
  points_of(check, {height, width});
  const auto same_window = [&](int64_t size) {
    const at::Tensor from = at::arange(size, on(device, at::kLong)) + (window_size - shift_size);
    const at::Tensor window = from.div(window_size, "floor");
    return window.unsqueeze(1) == window;
  };
  return in_both(same_window(height), same_window(width));
}

at::Tensor dilated_2d_pattern(int64_t height, int64_t width, int64_t k, OptionalDevice device) {
  const Check check("dilated_2d_pattern");
  require(check, k >= 1, "k", static_cast<double>(k), "at least 1", "1 is every token");
  points_of(check, {height, width});
  const auto apart = [&](int64_t size) { return differences(size, on(device, at::kLong)).remainder(k) == 0; };
  return in_both(apart(height), apart(width));
}

at::Tensor alibi_slopes(int64_t num_heads, OptionalDevice device) {
  const Check check("alibi_slopes");
  require(check, num_heads >= 1, "num_heads", static_cast<double>(num_heads), "at least 1", "give the heads' number");
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(num_heads)));
  const at::Tensor slopes = at::empty({num_heads}, at::kFloat);
  auto* slope = slopes.mutable_data_ptr<float>();
  for (int64_t h = 0; h < num_heads; ++h) {
    const double place = h < power ? static_cast<double>(h + 1) / static_cast<double>(power)
                                   : static_cast<double>(2 * (h - power) + 1) / static_cast<double>(2 * power);
    slope[h] = static_cast<float>(std::exp2(-8 * place));
  }
  return slopes.to(on(device, at::kFloat));
}

at::Tensor alibi_pattern(double threshold, at::IntArrayRef shape, OptionalDevice device) {
  const Check check("alibi_pattern");
  if (shape.size() != 3) {
    check.fail("mask_shape", c10::str(shape), "[heads, seqlen_q, seqlen_k]", "give it three sizes");
  }
  points_of(check, shape);
  const at::Tensor bias = alibi_slopes(shape[0], device).view({-1, 1, 1}) * at::arange(shape[2], on(device, at::kLong));
  return (bias < threshold).expand(shape).contiguous();
}

at::Tensor block_sparsify(const at::Tensor& x, const at::Tensor& layout, int64_t block_size) {
  const Check check("block_sparsify_tensor");
  check.dims("x", x, 4, "[batch, heads, seqlen_q, seqlen_k]");
  check.dims("mask", layout, 3, "[heads, rows, columns]");
  const at::Tensor blocks =
      as_blocks(check, "x", x, block_size).transpose(3, 4);  // [batch, heads, rows, columns, b, b]
  check.shape("mask", layout, blocks.sym_sizes().slice(1, 3), "it is the layout of x in blocks");
  return blocks.flatten(1, 3).index_select(1, layout.ne(0).flatten().nonzero().squeeze(1));
}

at::Tensor pattern_to_layout(const at::Tensor& mask, int64_t block_size) {
  const Check check("pattern_to_layout");
  if (mask.dim() < 2 || mask.dim() > 3) check.dims("mask", mask, 2, "[(heads,) seqlen_q, seqlen_k]");
  return as_blocks(check, "mask", mask.ne(0), block_size).amax(at::IntArrayRef{-1, -3}).to(at::kLong);
}

at::Tensor layout_to_pattern(const at::Tensor& layout, int64_t block_size) {
  const Check check("layout_to_pattern");
  if (layout.dim() < 2 || layout.dim() > 3) check.dims("layout", layout, 2, "[(heads,) rows, columns]");
  require(check, block_size >= 1, "block_size", static_cast<double>(block_size), "at least 1", "16 to 128 are usual");
  return layout.ne(0).repeat_interleave(block_size, -1).repeat_interleave(block_size, -2);
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  namespace fn = xformers::nn::functional;
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag}, drawn = {at::Tag::nondeterministic_seeded};
  m.def("local_nd_distance(int[] sizes, float p, float[] weights, Device? device=None) -> Tensor",
        fn::local_nd_distance, tags);
  m.def("local_nd_gaussian_distribution(int[] sizes, float sigma, Device? device=None) -> Tensor",
        fn::local_nd_gaussian_distribution, tags);
  m.def("local_nd_pattern(int[] sizes, float distance, float p, Device? device=None) -> Tensor", fn::local_nd_pattern,
        tags);
  m.def("axial_nd_pattern(int[] sizes, Device? device=None) -> Tensor", fn::axial_nd_pattern, tags);
  m.def("local_1d_pattern(int seqlen, int window_size, Device? device=None) -> Tensor", fn::local_1d_pattern, tags);
  m.def("causal_1d_pattern(int seqlen, Device? device=None) -> Tensor", fn::causal_1d_pattern, tags);
  m.def("random_pattern(int seqlen, float sparsity, Generator? generator=None, Device? device=None) -> Tensor",
        fn::random_pattern, drawn);
  m.def("random_pattern_from_probability_matrix(Tensor probabilities, int nnz, Generator? generator=None) -> Tensor",
        fn::random_pattern_from_probability_matrix, drawn);
  m.def("global_token_pattern(Tensor attention_query_mask) -> Tensor", fn::global_token_pattern, tags);
  m.def(
      "swin_attention_pattern(int height, int width, int window_size, int shift_size=0, Device? device=None) -> Tensor",
      fn::swin_attention_pattern, tags);
  m.def("dilated_2d_pattern(int height, int width, int k=2, Device? device=None) -> Tensor", fn::dilated_2d_pattern,
        tags);
  m.def("alibi_pattern(float threshold, int[] shape, Device? device=None) -> Tensor", fn::alibi_pattern, tags);
  m.def("block_sparsify_tensor(Tensor x, Tensor layout, int block_size) -> Tensor", fn::block_sparsify, tags);
  m.def("pattern_to_layout(Tensor mask, int block_size) -> Tensor", fn::pattern_to_layout, tags);
  m.def("layout_to_pattern(Tensor layout, int block_size) -> Tensor", fn::layout_to_pattern, tags);
}
