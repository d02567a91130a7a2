// Who attends to whom, as tensors: masks [seqlen, seqlen], True where a query sees a key, and layouts, the same over
// blocks. Tokens of a grid are numbered with its last coordinate fastest. Masks are made on `device`, the CPU by
// default.
//
// What is random comes from `generator`, on its device, or else from the CPU's default one, which torch::manual_seed
// sets: one seed gives one mask on every device. xformers::Error for sizes that do not fit.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>

namespace xformers::nn::functional {

using OptionalDevice = std::optional<at::Device>;
using OptionalGenerator = std::optional<at::Generator>;

// The p-distance of any two points of the grid `sizes`, fp32 [points, points]. weights: of each coordinate, 1 where
// empty. p = 0 counts the coordinates that differ, infinity takes the largest difference.
at::Tensor local_nd_distance(at::IntArrayRef sizes, double p = 2, at::ArrayRef<double> weights = {},
                             OptionalDevice device = {});

// exp(-distance^2 / (2 sigma^2)), fp32 [points, points].
at::Tensor local_nd_gaussian_distribution(at::IntArrayRef sizes, double sigma, OptionalDevice device = {});

// Points nearer than `distance`.
at::Tensor local_nd_pattern(at::IntArrayRef sizes, double distance, double p = 2, OptionalDevice device = {});

// Points that differ in one coordinate at most: Ho et al., arXiv:1912.12180.
at::Tensor axial_nd_pattern(at::IntArrayRef sizes, OptionalDevice device = {});

// |i - j| <= window_size / 2, window_size odd.
at::Tensor local_1d_pattern(int64_t seqlen, int64_t window_size, OptionalDevice device = {});

// j <= i
at::Tensor causal_1d_pattern(int64_t seqlen, OptionalDevice device = {});

// Each element with probability 1 - sparsity; 0 < sparsity < 1.
at::Tensor random_pattern(int64_t seqlen, double sparsity, OptionalGenerator generator = {},
                          OptionalDevice device = {});

// `nnz` different elements, one after the other with probabilities in proportion to those [rows, columns] of what is
// left: the nnz first of exponential clocks, in fp64, so that any number of elements works.
at::Tensor random_pattern_from_probability_matrix(const at::Tensor& probabilities, int64_t nnz,
                                                  OptionalGenerator generator = {});

// Global tokens (bool [seqlen]) see all and are seen by all: Beltagy et al., arXiv:2004.05150.
at::Tensor global_token_pattern(const at::Tensor& is_global);

// Tokens of one window of a height x width grid cut into windows from row and column `shift_size` on: Liu et al.,
// arXiv:2103.14030. Windows divide both sides; those at the border are cut, not joined over it.
at::Tensor swin_attention_pattern(int64_t height, int64_t width, int64_t window_size, int64_t shift_size = 0,
                                  OptionalDevice device = {});

// Tokens whose rows and columns differ by multiples of k.
at::Tensor dilated_2d_pattern(int64_t height, int64_t width, int64_t k = 2, OptionalDevice device = {});

// The slopes of ALiBi, fp32 [num_heads]: 2^(-8 (h + 1) / n) where n = num_heads is a power of 2; else those of the
// power below, then every other one of twice that power. Press et al., arXiv:2108.12409.
at::Tensor alibi_slopes(int64_t num_heads, OptionalDevice device = {});

// slope_h j < threshold for key j: bool [num_heads, seqlen_q, seqlen_k].
at::Tensor alibi_pattern(double threshold, at::IntArrayRef shape, OptionalDevice device = {});

// x [batch, heads, seqlen_q, seqlen_k] at the blocks of layout [heads, rows, columns], in the order of their places:
// [batch, blocks, block_size, block_size].
at::Tensor block_sparsify(const at::Tensor& x, const at::Tensor& layout, int64_t block_size);

// mask [(heads,) seqlen_q, seqlen_k] -> int64 [(heads,) rows, columns], 1 where any element of a block is not 0; and
// back, whole blocks.
at::Tensor pattern_to_layout(const at::Tensor& mask, int64_t block_size);
at::Tensor layout_to_pattern(const at::Tensor& layout, int64_t block_size);

}  // namespace xformers::nn::functional
