// Embeddings of positions, words and patches, as functions of their parameters. Composed of LibTorch's operators and of
// this library's, on every device; also torch.ops.xformers.<name>.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"

namespace xformers::nn::functional {

// x [batch, seqlen, dim_model], or [batch, seqlen] (integers too), which gets a last dimension and broadcasts, plus
// pe[s, d] = sin (even d) or cos (odd d) of s 10000^(-2 floor(d / 2) / dim_model), computed in fp64. From "Attention Is
// All You Need" (Vaswani et al., arXiv:1706.03762, section 3.5).
at::Tensor sine_embedding(const at::Tensor& x, int64_t dim_model);

// dropout(words[ids] + positions[0 ... seqlen - 1]): ids int32 or int64 [batch, seqlen], words [vocab_size, dim],
// positions [at least seqlen, dim].
at::Tensor vocab_embedding(const at::Tensor& ids, const at::Tensor& words, const at::Tensor& positions, double p = 0);

// x [batch, seqlen, dim], or [batch, seqlen], plus the first rows of positions [1, at least seqlen, dim]. class_token
// [dim], or of shape [1, 1, dim]: is put before x, and takes the first position.
at::Tensor learnable_embedding(const at::Tensor& x, const at::Tensor& positions,
                               const std::optional<at::Tensor>& class_token = std::nullopt);

// x [..., dim]: its last dimension in `chunks` chunks, each softmax(chunk / temperature). From "Simplicial Embeddings
// in Self-Supervised Learning" (Lavoie et al., arXiv:2204.00616).
at::Tensor simplicial_embedding(const at::Tensor& x, int64_t chunks, std::optional<double> temperature = std::nullopt);

// Tokens of a square grid, [batch, side^2, channels], as [batch, channels, side, side], channels last in memory: a
// view. Four dimensions stay. And back: [batch, height width, channels].
at::Tensor tokens_to_grid(const at::Tensor& x);
at::Tensor grid_to_tokens(const at::Tensor& x);
// For whom errors speak: tokens [batch, seqlen, channels]; the side of their grid.
at::Tensor grid_of(const char* where, const at::Tensor& tokens);
int64_t grid_side(const char* where, const at::Tensor& tokens);

}  // namespace xformers::nn::functional

// Their names outside of this folder.
namespace xformers::nn {
using functional::grid_of;
using functional::grid_side;
using functional::grid_to_tokens;
using functional::learnable_embedding;
using functional::simplicial_embedding;
using functional::sine_embedding;
using functional::tokens_to_grid;
using functional::vocab_embedding;
}  // namespace xformers::nn
