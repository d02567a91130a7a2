#include "xformers/nn/functional/sparsity_config.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "xformers/ops/common/check.h"

namespace xformers::nn::functional {
namespace {

const ops::Check& layout_check() {
  static const ops::Check check("SparsityConfig");
  return check;
}

void require_option(bool holds, const char* name, int64_t got, const std::string& expected, const char* fix) {
  if (!holds) layout_check().fail(name, std::to_string(got), expected, fix);
}

void require_fits(const at::Tensor& layout, const char* name, int64_t count) {
  require_option(count >= 0 && count <= layout.size(1), name, count,
                 "0 to " + std::to_string(layout.size(1)) + ", the blocks of the sequence",
                 "take fewer, smaller blocks or a longer sequence");
}

// Adds what `seen` [rows, columns] has, in place.
void add(const at::Tensor& layout, const at::Tensor& seen, bool causal) {
  layout.masked_fill_(causal ? seen.tril() : seen, 1);
}

// column - row [rows, columns]
at::Tensor offsets(const at::Tensor& layout) {
  return at::arange(layout.size(1), layout.options()) - at::arange(layout.size(0), layout.options()).unsqueeze(1);
}

at::Tensor nothing(const at::Tensor& layout) { return at::zeros(layout.sizes(), layout.options().dtype(at::kBool)); }

// A range of columns, and of rows.
void fill(const at::Tensor& seen, int64_t begin, int64_t end, bool rows) {
  begin = std::min(begin, seen.size(1));
  end = std::min(end, seen.size(1));
  if (begin >= end) return;
  seen.narrow(1, begin, end - begin).fill_(true);
  if (rows && begin < seen.size(0)) seen.narrow(0, begin, std::min(end, seen.size(0)) - begin).fill_(true);
}

template <class SetHead>
at::Tensor layout_of_heads(const SparsityConfig& config, int64_t seqlen, SetHead set_head) {
  at::Tensor layout = config.setup_layout(seqlen);
  for (int64_t head = 0; head < config.num_layout_heads(); ++head) set_head(head, layout[head]);
  if (!config.different_layout_per_head) layout.copy_(layout.narrow(0, 0, 1).clone());
  return layout;
}

}  // namespace

at::Tensor SparsityConfig::setup_layout(int64_t seqlen) const {
  require_option(num_heads >= 1, "num_heads", num_heads, "at least 1", "give the number of heads");
  require_option(block_size >= 1, "block_size", block_size, "at least 1", "16 to 128 are usual");
  require_option(seqlen >= 0 && seqlen % block_size == 0, "seq_len", seqlen,
                 "a multiple of block_size = " + std::to_string(block_size), "pad the sequence");
  return at::zeros({num_heads, seqlen / block_size, seqlen / block_size}, at::kLong);
}

void set_windows(const at::Tensor& layout, at::IntArrayRef sizes, bool causal) {
  if (sizes.empty()) layout_check().fail("local_window_blocks", "[]", "at least one size", "4 is usual");
  const at::Tensor seen = nothing(layout);
  int64_t begin = 0;
  for (size_t i = 0; begin < layout.size(0); ++i) {
    const int64_t size = sizes[std::min(i, sizes.size() - 1)];
    require_option(size >= 1, "local_window_blocks", size, "sizes of at least 1", "4 is usual");
    const int64_t length = std::min(size, layout.size(0) - begin);
    seen.narrow(0, begin, length).narrow(1, begin, length).fill_(true);
    begin += length;
  }
  add(layout, seen, causal);
}

void set_sliding_window(const at::Tensor& layout, int64_t width, bool causal) {
  require_fits(layout, "num_sliding_window_blocks", width);
  add(layout, offsets(layout).abs() <= width / 2, causal);
}

void check_global(at::IntArrayRef begin, at::IntArrayRef end, bool causal, bool horizontal) {
  if (!end.empty()) {
    if (end.size() != begin.size()) {
      layout_check().fail("global_block_end_indices", std::to_string(end.size()) + " numbers",
                          std::to_string(begin.size()), "give one end per index of global_block_indices");
    }
    for (size_t i = 0; i < end.size(); ++i) {
      require_option(begin[i] < end[i], "global_block_end_indices", end[i], "more than " + std::to_string(begin[i]),
                     "a range ends before its end index");
    }
  }
  for (int64_t index : begin) {
    require_option(index >= 0, "global_block_indices", index, "no negative ones", "count blocks from 0");
  }
  if (causal && horizontal) {
    layout_check().fail("horizontal_global_attention", "True", "False where attention is unidirectional",
                        "global rows would see the future");
  }
}

void set_global(const at::Tensor& layout, at::IntArrayRef begin, at::IntArrayRef end, bool causal, bool rows) {
  const at::Tensor seen = nothing(layout);
  for (size_t i = 0; i < begin.size(); ++i) fill(seen, begin[i], end.empty() ? begin[i] + 1 : end[i], rows);
  add(layout, seen, causal);
}

void set_first_global(const at::Tensor& layout, int64_t count, bool causal) {
  require_fits(layout, "num_global_blocks", count);
  set_global(layout, {0}, {count}, causal, /*rows=*/true);
}

void set_random(const at::Tensor& layout, int64_t count, bool causal, std::optional<at::Generator> generator) {
  require_fits(layout, "num_random_blocks", count);
  if (count == 0) return;
  // The places of the `count` smallest of random numbers; those right of the diagonal are larger than all.
  at::Tensor drawn = at::rand(layout.sizes(), generator, at::TensorOptions().dtype(at::kDouble));
  if (causal) drawn.masked_fill_(at::ones(drawn.sizes(), at::kBool).triu(1), 2);
  const at::Tensor places = std::get<1>(drawn.topk(count, -1, /*largest=*/false));
  const at::Tensor seen = at::zeros(layout.sizes(), at::kBool).scatter_(1, places, true);
  add(layout, seen.to(layout.device()), causal);
}

at::Tensor DenseSparsityConfig::make_layout(int64_t seqlen) const { return setup_layout(seqlen).fill_(1); }

void FixedSparsityConfig::check() const {
  require_option(num_local_blocks >= 1, "num_local_blocks", num_local_blocks, "at least 1", "4 is usual");
  require_option(num_global_blocks >= 1 && num_local_blocks % num_global_blocks == 0, "num_global_blocks",
                 num_global_blocks, "a divisor of num_local_blocks = " + std::to_string(num_local_blocks),
                 "1 is usual");
  check_global({}, {}, causal, horizontal_global_attention);
  const int64_t patterns = num_different_global_patterns;
  require_option(patterns == 1 || different_layout_per_head, "num_different_global_patterns", patterns,
                 "1 where all heads have one layout", "set different_layout_per_head");
  const int64_t most = num_local_blocks / num_global_blocks;
  require_option(patterns >= 1 && patterns <= most, "num_different_global_patterns", patterns,
                 "1 to num_local_blocks / num_global_blocks = " + std::to_string(most),
                 "a window has no more places for global blocks");
}

void FixedSparsityConfig::set_global_layout(int64_t head, const at::Tensor& layout) const {
  const int64_t blocks = layout.size(1), width = num_global_blocks;
  const int64_t first = num_local_blocks - (1 + head % num_different_global_patterns) * width;
  const int64_t whole = blocks - blocks % num_local_blocks;  // the last window may be short
  std::vector<int64_t> begin, end;
  for (int64_t i = first; i < whole; i += num_local_blocks) begin.push_back(i);
  if (whole < blocks) begin.push_back(std::max<int64_t>(std::min(whole + first, blocks - width), 0));
  for (int64_t i : begin) end.push_back(i + width);
  set_global(layout, begin, end, causal, horizontal_global_attention);
}

at::Tensor FixedSparsityConfig::make_layout(int64_t seqlen) const {
  check();
  return layout_of_heads(*this, seqlen, [&](int64_t head, const at::Tensor& layout) {
    set_windows(layout, {num_local_blocks}, causal);
    set_global_layout(head, layout);
  });
}

at::Tensor VariableSparsityConfig::make_layout(int64_t seqlen) const {
  check_global(global_block_indices, global_block_end_indices, causal, horizontal_global_attention);
  return layout_of_heads(*this, seqlen, [&](int64_t, const at::Tensor& layout) {
    set_random(layout, num_random_blocks, causal, generator);
    set_windows(layout, local_window_blocks, causal);
    set_global(layout, global_block_indices, global_block_end_indices, causal, horizontal_global_attention);
  });
}

at::Tensor BigBirdSparsityConfig::make_layout(int64_t seqlen) const {
  return layout_of_heads(*this, seqlen, [&](int64_t, const at::Tensor& layout) {
    set_random(layout, num_random_blocks, causal, generator);
    set_sliding_window(layout, num_sliding_window_blocks, causal);
    set_first_global(layout, num_global_blocks, causal);
  });
}

at::Tensor BSLongformerSparsityConfig::make_layout(int64_t seqlen) const {
  check_global(global_block_indices, global_block_end_indices, causal, /*horizontal=*/false);
  return layout_of_heads(*this, seqlen, [&](int64_t, const at::Tensor& layout) {
    set_sliding_window(layout, num_sliding_window_blocks, causal);
    set_global(layout, global_block_indices, global_block_end_indices, causal, /*rows=*/true);
  });
}

}  // namespace xformers::nn::functional

// The steps, as the Python classes call them.
TORCH_LIBRARY_FRAGMENT(xformers, m) {
  namespace fn = xformers::nn::functional;
  const auto fixed = [](int64_t local, int64_t global, bool causal, bool horizontal, int64_t patterns, bool per_head) {
    return fn::FixedSparsityConfig{
        {.different_layout_per_head = per_head}, local, global, causal, horizontal, patterns};
  };
  m.def("_sparsity_setup(int num_heads, int block_size, int seqlen) -> Tensor",
        [](int64_t num_heads, int64_t block_size, int64_t seqlen) {
          return fn::SparsityConfig{num_heads, block_size}.setup_layout(seqlen);
        });
  m.def("_sparsity_windows_(Tensor(a!) layout, int[] sizes, bool causal) -> ()", fn::set_windows);
  m.def("_sparsity_sliding_window_(Tensor(a!) layout, int width, bool causal) -> ()", fn::set_sliding_window);
  m.def("_sparsity_global_(Tensor(a!) layout, int[] begin, int[] end, bool causal, bool rows) -> ()", fn::set_global);
  m.def("_sparsity_first_global_(Tensor(a!) layout, int count, bool causal) -> ()", fn::set_first_global);
  m.def("_sparsity_random_(Tensor(a!) layout, int count, bool causal, Generator? generator=None) -> ()", fn::set_random,
        {at::Tag::nondeterministic_seeded});
  m.def("_sparsity_check_global(int[] begin, int[] end, bool causal, bool horizontal) -> ()", fn::check_global);
  m.def(
      "_sparsity_check_fixed(int num_local_blocks, int num_global_blocks, bool causal, bool horizontal, int patterns, "
      "bool per_head) -> ()",
      [fixed](int64_t local, int64_t global, bool causal, bool horizontal, int64_t patterns, bool per_head) {
        fixed(local, global, causal, horizontal, patterns, per_head).check();
      });
  m.def(
      "_sparsity_fixed_global_(Tensor(a!) layout, int head, int num_local_blocks, int num_global_blocks, bool causal, "
      "bool horizontal, int patterns) -> ()",
      [fixed](const at::Tensor& layout, int64_t head, int64_t local, int64_t global, bool causal, bool horizontal,
              int64_t patterns) {
        fixed(local, global, causal, horizontal, patterns, true).set_global_layout(head, layout);
      });
}
