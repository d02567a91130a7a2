#include "benchmarks/attention/sides.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <memory>

#include "benchmarks/attention/decode.h"
#include "benchmarks/common/bandwidth.h"
#include "benchmarks/common/peak_memory.h"
#include "xformers/ops/attention/attention.h"

namespace xformers::bench {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

constexpr int64_t kGemmSize = 2048;
constexpr int64_t kPlainSeqlen = 2048;            // the plain formula up to here
constexpr int64_t kMaskBytes = int64_t{2} << 30;  // the largest dense mask that SDPA is given

at::ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return at::kDouble;
    case DType::kFloat32: return at::kFloat;
    case DType::kBFloat16: return at::kBFloat16;
    case DType::kFloat16: return at::kHalf;
  }
  return at::kFloat;
}

bool causal(const testing::AttentionCase& c) { return c.band.window_right == 0 && c.band.window_left == kUnbounded; }

// Booleans [rows, columns] of blocks.
Tensor block_layout(const testing::AttentionCase& c) {
  std::vector<char> visible = visible_blocks(c);
  const int64_t rows = (c.seqlen_q + c.block_q - 1) / c.block_q;
  return at::from_blob(visible.data(), {rows, static_cast<int64_t>(visible.size()) / rows}, at::kChar).to(at::kBool);
}

ops::AttentionBias our_bias(const testing::AttentionCase& c) {
  if (c.packed()) {
    const std::vector<int64_t> lengths(c.lengths_q.begin(), c.lengths_q.end());
    if (causal(c)) return ops::BlockDiagonalCausalMask::from_seqlens(lengths);
    return ops::BlockDiagonalMask::from_seqlens(lengths);
  }
  if (c.block_mask()) return ops::BlockSparseMask(block_layout(c), {c.block_q, c.block_k});
  if (causal(c)) return ops::LowerTriangularMask();
  if (c.band.window_left != kUnbounded)
    return ops::LocalAttentionFromBottomRightMask(c.band.window_left, c.band.window_right);
  return {};
}

Tensor sdpa(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, bool is_causal,
            bool gqa = false) {
  return at::scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, std::nullopt, gqa);
}

// q, k, v and dout of one problem, in one layout.
struct Problem {
  Tensor q, k, v, dout;

  // [batch, seqlen, heads, head_dim] to [batch, heads, seqlen, head_dim], in memory.
  Problem heads_first() const {
    const auto swap = [](const Tensor& t) { return t.transpose(1, 2).contiguous(); };
    return {swap(q), swap(k), swap(v), swap(dout)};
  }
};

Problem random_problem(const testing::AttentionCase& c) {
  at::manual_seed(1);
  const auto options = at::TensorOptions(scalar_type(c.dtype));
  const int64_t kv_heads = c.kv_heads.value_or(c.heads);
  const auto draw = [&](int64_t seqlen, int64_t heads, int64_t dim) {
    return at::randn({c.batch, seqlen, heads, dim}, at::kFloat).to(options);
  };
  return {draw(c.seqlen_q, c.heads, c.head_dim), draw(c.seqlen_k, kv_heads, c.head_dim),
          draw(c.seqlen_k, kv_heads, c.dim_v()), draw(c.seqlen_q, c.heads, c.dim_v())};
}

// A side that computes outputs from problems: forward runs `compute`; backward runs the gradient of one kept graph.
template <class Compute>
Side make_side(const std::string& name, std::vector<Problem> problems, bool backward, Compute compute,
               int max_samples = 0) {
  const auto all_outputs = [compute](const std::vector<Problem>& list) {
    Tensors outputs;
    for (size_t i = 0; i < list.size(); ++i) outputs.push_back(compute(list[i], i));
    return outputs;
  };
  if (!backward) {
    return {name,
            [=] {
              const at::NoGradGuard no_grad;
              all_outputs(problems);
            },
            max_samples};
  }
  Tensors inputs, douts;
  for (Problem& p : problems) {
    for (Tensor* t : {&p.q, &p.k, &p.v}) inputs.push_back(*t = t->detach().requires_grad_());
    douts.push_back(p.dout);
  }
  const Tensors outputs = all_outputs(problems);
  return {name, [=] { torch::autograd::grad(outputs, inputs, douts, /*retain_graph=*/true); }, max_samples};
}

// The band as a bool mask [queries, keys].
Tensor band_mask(const MaskBand& band, int64_t queries, int64_t keys) {
  const Tensor distance =
      at::arange(keys).unsqueeze(0) - at::arange(queries).unsqueeze(1) - (band.bottom_right ? keys - queries : 0);
  Tensor mask = at::ones({queries, keys}, at::kBool);
  if (band.window_left != kUnbounded) mask &= distance >= -band.window_left;
  if (band.window_right != kUnbounded) mask &= distance <= band.window_right;
  return mask;
}

Tensor additive(const Tensor& mask, at::ScalarType dtype) {
  return at::zeros(mask.sizes(), dtype).masked_fill_(mask.logical_not(), -INFINITY);
}

ops::ScoreOptions score_options(const testing::AttentionCase& c) {
  ops::ScoreOptions options{.softcap = c.softcap};
  const auto number = at::arange(1, c.heads + 1, at::kFloat) / static_cast<double>(c.heads);
  if (c.alibi != testing::PerHead::kNone) options.alibi_slopes = at::pow(2, -8 * number);
  if (c.sinks != testing::PerHead::kNone) options.sinks = number;
  return options;
}

// Against the same without modifiers; packed sequences of one length with a bias against a batch with it.
void add_modified(std::vector<AttentionSide>& sides, const Row& row, const Problem& p) {
  const testing::AttentionCase& c = row.shape;
  if (!c.packed()) {
    const ops::AttentionBias mask = our_bias(c);
    const ops::ScoreOptions options = score_options(c);
    sides.push_back({Role::kOurs, make_side(kOurs, {p}, row.backward, [=](const Problem& x, size_t) {
                       return ops::memory_efficient_attention(x.q, x.k, x.v, mask, 0, {}, {}, options);
                     })});
    sides.push_back({Role::kRival, make_side("unmodified", {p}, row.backward, [=](const Problem& x, size_t) {
                       return ops::memory_efficient_attention(x.q, x.k, x.v, mask);
                     })});
    return;
  }
  const int64_t count = c.num_sequences(), length = c.lengths_q[0];
  const std::vector<int64_t> lengths(c.lengths_q.begin(), c.lengths_q.end());
  const Tensor bias = at::randn({1, c.heads, length, length}).to(p.q.scalar_type());
  const ops::AttentionBias packed = ops::with_bias(ops::BlockDiagonalMask::from_seqlens(lengths), bias);
  sides.push_back({Role::kOurs, make_side(kOurs, {p}, row.backward, [=](const Problem& x, size_t) {
                     return ops::memory_efficient_attention(x.q, x.k, x.v, packed);
                   })});
  const auto rows = [&](const Tensor& t) { return t.view({count, length, t.size(2), t.size(3)}); };
  const Problem batch{rows(p.q), rows(p.k), rows(p.v), rows(p.dout)};
  const Tensor each = bias.expand({count, c.heads, length, length});
  sides.push_back({Role::kRival, make_side("batch", {batch}, row.backward, [each](const Problem& x, size_t) {
                     return ops::memory_efficient_attention(x.q, x.k, x.v, each);
                   })});
}

AttentionSide ours(const Row& row, const Problem& p) {
  const ops::AttentionBias bias = our_bias(row.shape);
  return {Role::kOurs, make_side(kOurs, {p}, row.backward, [bias](const Problem& x, size_t) {
            return ops::memory_efficient_attention(x.q, x.k, x.v, bias);
          })};
}

void add_dense(std::vector<AttentionSide>& sides, const Row& row, const Problem& p) {
  const bool is_causal = causal(row.shape);
  sides.push_back({Role::kRival, make_side("sdpa", {p}, row.backward, [is_causal](const Problem& x, size_t) {
                     return sdpa(x.q, x.k, x.v, {}, is_causal);
                   })});
  if (row.shape.seqlen_k > kPlainSeqlen) return;
  const double scale = row.shape.softmax_scale();
  const Tensor mask =
      is_causal ? additive(band_mask(row.shape.band, row.shape.seqlen_q, row.shape.seqlen_k), p.q.scalar_type())
                : Tensor();
  sides.push_back({Role::kOther, make_side("plain", {p}, row.backward, [scale, mask](const Problem& x, size_t) {
                     Tensor scores = at::matmul(x.q * scale, x.k.transpose(-2, -1));
                     if (mask.defined()) scores = scores + mask;
                     return at::matmul(scores.softmax(-1), x.v);
                   })});
}

// Blocks of queries against the keys that any of them sees: a window by hand, for a causal window.
Problem query_block(const Problem& p, int64_t begin, int64_t end, int64_t window_left) {
  const int64_t first_key = std::max<int64_t>(0, begin - window_left);
  const auto rows = [](const Tensor& t, int64_t from, int64_t to) { return t.slice(2, from, to).contiguous(); };
  return {rows(p.q, begin, end), rows(p.k, first_key, end), rows(p.v, first_key, end), rows(p.dout, begin, end)};
}

void add_window(std::vector<AttentionSide>& sides, const Row& row, const Problem& p) {
  const testing::AttentionCase& c = row.shape;
  const Tensor mask = band_mask(c.band, c.seqlen_q, c.seqlen_k);
  const Tensor bias = additive(mask, p.q.scalar_type());
  for (const auto& [name, dense] : {std::pair("sdpa_bool_mask", mask), std::pair("sdpa_mask", bias)}) {
    sides.push_back({Role::kRival, make_side(name, {p}, row.backward, [dense = dense](const Problem& x, size_t) {
                       return sdpa(x.q, x.k, x.v, dense, false);
                     })});
  }
  sides.push_back({Role::kOther, make_side("sdpa_causal", {p}, row.backward,
                                           [](const Problem& x, size_t) { return sdpa(x.q, x.k, x.v, {}, true); })});
  constexpr int64_t kBlock = 256;
  std::vector<Problem> blocks;
  Tensors masks;
  for (int64_t begin = 0; begin < c.seqlen_q; begin += kBlock) {
    blocks.push_back(query_block(p, begin, std::min(begin + kBlock, c.seqlen_q), c.band.window_left));
    const Problem& block = blocks.back();
    masks.push_back(
        additive(band_mask({c.band.window_left, 0, true}, block.q.size(2), block.k.size(2)), p.q.scalar_type()));
  }
  sides.push_back({Role::kOther, make_side("sdpa_blocks", blocks, row.backward, [masks](const Problem& x, size_t i) {
                     return sdpa(x.q, x.k, x.v, masks[i], false);
                   })});
}

// Also the same without a mask, whose rate is the one to reach.
void add_blocks(std::vector<AttentionSide>& sides, const Row& row, const Problem& p, const Problem& as_given) {
  const testing::AttentionCase& c = row.shape;
  const Tensor mask = block_layout(c)
                          .repeat_interleave(c.block_q, 0)
                          .repeat_interleave(c.block_k, 1)
                          .slice(0, 0, c.seqlen_q)
                          .slice(1, 0, c.seqlen_k);
  sides.push_back({Role::kRival, make_side(
                                     "sdpa_bool_mask", {p}, row.backward,
                                     [mask](const Problem& x, size_t) { return sdpa(x.q, x.k, x.v, mask, false); },
                                     /*max_samples=*/3)});
  sides.push_back({Role::kOther, make_side(kDenseSide, {as_given}, row.backward, [](const Problem& x, size_t) {
                     return ops::memory_efficient_attention(x.q, x.k, x.v);
                   })});
}

// [1, heads, total, dim] cut into sequences.
std::vector<Problem> split_sequences(const Problem& p, const std::vector<int32_t>& lengths) {
  std::vector<Problem> parts;
  int64_t begin = 0;
  for (int32_t length : lengths) {
    const auto cut = [&](const Tensor& t) { return t.slice(2, begin, begin + length).contiguous(); };
    parts.push_back({cut(p.q), cut(p.k), cut(p.v), cut(p.dout)});
    begin += length;
  }
  return parts;
}

// The sequences as a batch of the longest one's length.
Problem pad_sequences(const std::vector<Problem>& parts, int64_t longest) {
  const auto pad = [&](Tensor Problem::* member) {
    Tensors padded;
    for (const Problem& part : parts) {
      const Tensor& t = part.*member;
      padded.push_back(at::constant_pad_nd(t, {0, 0, 0, longest - t.size(2)}));
    }
    return at::cat(padded).contiguous();
  };
  return {pad(&Problem::q), pad(&Problem::k), pad(&Problem::v), pad(&Problem::dout)};
}

void add_packed(std::vector<AttentionSide>& sides, const Row& row, const Problem& p, bool quick) {
  const testing::AttentionCase& c = row.shape;
  const bool is_causal = causal(c);
  const std::vector<Problem> parts = split_sequences(p, c.lengths_q);
  sides.push_back({Role::kRival, make_side("sdpa_loop", parts, row.backward, [is_causal](const Problem& x, size_t) {
                     return sdpa(x.q, x.k, x.v, {}, is_causal);
                   })});

  const int64_t longest = *std::max_element(c.lengths_q.begin(), c.lengths_q.end());
  const Tensor lengths = at::tensor(std::vector<int64_t>(c.lengths_q.begin(), c.lengths_q.end()));
  Tensor key_used =
      (at::arange(longest).unsqueeze(0) < lengths.unsqueeze(1)).unsqueeze(1).unsqueeze(1);  // [n, 1, 1, longest]
  if (is_causal) key_used = key_used & band_mask(c.band, longest, longest);
  sides.push_back(
      {Role::kRival, make_side("sdpa_padded", {pad_sequences(parts, longest)}, row.backward,
                               [key_used](const Problem& x, size_t) { return sdpa(x.q, x.k, x.v, key_used, false); })});

  const int64_t mask_bytes = c.seqlen_q * c.seqlen_k * static_cast<int64_t>(size_of(c.dtype));
  if (row.backward || is_causal || quick || mask_bytes > kMaskBytes) return;
  const Tensor sequence = at::repeat_interleave(lengths);  // the sequence of each row
  const Tensor mask = sequence.unsqueeze(1) == sequence.unsqueeze(0);
  sides.push_back({Role::kRival, make_side(
                                     "sdpa_mask", {p}, row.backward,
                                     [mask](const Problem& x, size_t) { return sdpa(x.q, x.k, x.v, mask, false); },
                                     /*max_samples=*/1)});
}

AttentionSide our_one_query(const Row& row, const Problem& p) {
  const testing::AttentionCase& c = row.shape;
  const int64_t groups = c.num_groups(), heads = c.heads_per_group();
  const auto grouped = [&](const Tensor& t) {
    return t.unsqueeze(3).expand({t.size(0), t.size(1), groups, heads, t.size(3)});
  };
  const Problem five{p.q.view({c.batch, 1, groups, heads, c.head_dim}), grouped(p.k), grouped(p.v), Tensor()};
  return {Role::kOurs, make_side(kOurs, {five}, false, [](const Problem& x, size_t) {
            return ops::memory_efficient_attention(x.q, x.k, x.v);
          })};
}

void add_one_query(std::vector<AttentionSide>& sides, const Row& row, const Problem& p) {
  const testing::AttentionCase& c = row.shape;
  sides.push_back({Role::kRival, make_side("sdpa_gqa", {p}, false, [](const Problem& x, size_t) {
                     return sdpa(x.q, x.k, x.v, {}, false, /*gqa=*/true);
                   })});
  const int64_t repeats = c.heads_per_group();
  const Problem expanded{p.q, p.k.repeat_interleave(repeats, 1), p.v.repeat_interleave(repeats, 1), Tensor()};
  sides.push_back({Role::kRival, make_side("sdpa_expanded", {expanded}, false,
                                           [](const Problem& x, size_t) { return sdpa(x.q, x.k, x.v, {}, false); })});
  // The query heads of a group as so many queries of one head.
  const Problem folded{p.q.reshape({c.batch, c.num_groups(), repeats, c.head_dim}), p.k, p.v, Tensor()};
  sides.push_back({Role::kOther, make_side("sdpa_folded", {folded}, false,
                                           [](const Problem& x, size_t) { return sdpa(x.q, x.k, x.v, {}, false); })});
  const auto buffer = std::make_shared<BandwidthBuffer>(static_cast<int64_t>(row.kv_bytes()));
  sides.push_back({Role::kRoof, {kRead, [buffer] { buffer->read(); }}});
  sides.push_back({Role::kRoof, {kCopy, [buffer] { buffer->copy(); }}});
}

AttentionSide gemm(DType dtype) {
  const Tensor a = at::randn({kGemmSize, kGemmSize}).to(scalar_type(dtype)),
               b = at::randn({kGemmSize, kGemmSize}).to(scalar_type(dtype));
  Tensor c = at::empty_like(a);
  constexpr int kSamples = 5;
  return {Role::kRoof, {kGemm, [=]() mutable { at::mm_out(c, a, b); }, kSamples}};
}

}  // namespace

double gemm_flops() { return 2.0 * kGemmSize * kGemmSize * kGemmSize; }

std::vector<AttentionSide> attention_sides(const Row& row, bool quick) {
  if (row.family == Family::kDecode) return decode_sides(row);
  const Problem p = random_problem(row.shape);
  std::vector<AttentionSide> sides;
  if (row.family == Family::kOneQuery) {
    sides.push_back(our_one_query(row, p));
    add_one_query(sides, row, p.heads_first());
    return sides;
  }
  if (row.family == Family::kModified) {
    add_modified(sides, row, p);
    return sides;
  }
  sides.push_back(ours(row, p));
  if (row.family == Family::kDense) add_dense(sides, row, p.heads_first());
  if (row.family == Family::kBlocks) add_blocks(sides, row, p.heads_first(), p);
  if (row.family == Family::kWindow) add_window(sides, row, p.heads_first());
  if (row.family == Family::kPacked) add_packed(sides, row, p.heads_first(), quick);
  sides.push_back(gemm(row.shape.dtype));
  return sides;
}

double extra_memory(const Row& row, bool ours) {
  const auto compute = [&](const Problem& p) {
    if (ours) return ops::memory_efficient_attention(p.q, p.k, p.v, our_bias(row.shape));
    return sdpa(p.q, p.k, p.v, {}, causal(row.shape));
  };
  const auto inputs = [&](const testing::AttentionCase& c) {
    const Problem p = random_problem(c);
    return ours ? p : p.heads_first();
  };
  // Inputs ready, outputs (out, or the three gradients) counted as such, the rest is extra.
  const auto measure = [&](Problem p) {
    if (!row.backward) {
      const at::NoGradGuard no_grad;
      reset_peak_memory();
      const int64_t before = resident_memory();
      const Tensor out = compute(p);
      return static_cast<double>(peak_memory() - before - static_cast<int64_t>(out.nbytes()));
    }
    for (Tensor* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
    const Tensor out = compute(p);
    reset_peak_memory();
    const int64_t before = resident_memory();
    const Tensors gradients = torch::autograd::grad({out}, {p.q, p.k, p.v}, {p.dout});
    int64_t outputs = 0;
    for (const Tensor& t : gradients) outputs += static_cast<int64_t>(t.nbytes());
    return static_cast<double>(peak_memory() - before - outputs);
  };
  testing::AttentionCase small = row.shape;  // loads code, starts threads
  small.seqlen_q = small.seqlen_k = 64;
  measure(inputs(small));
  return measure(inputs(row.shape));
}

}  // namespace xformers::bench
