// Which blocks of the score matrix are computed: the layouts of DeepSpeed's sparse attention, after Child et al.
// (arXiv:1904.10509), Zaheer et al. (arXiv:2007.14062) and Beltagy et al. (arXiv:2004.05150). A layout is int64 [heads,
// rows, columns] over blocks of block_size x block_size elements: 1 where a block of queries sees a block of keys.
//
//   at::Tensor layout = FixedSparsityConfig{{.num_heads = 8, .block_size = 64}, 4, 1,
//   /*causal=*/true}.make_layout(4096);
//
// Causal layouts ("unidirectional" in Python) have nothing right of the diagonal.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace xformers::nn::functional {

// What all have. make_layout of each kind does its steps for every head, or for the first one, whose layout is then
// that of all. xformers::Error for options that do not fit each other or the sequence.
struct SparsityConfig {
  int64_t num_heads = 1, block_size = 16;
  bool different_layout_per_head = false;

  int64_t num_layout_heads() const { return different_layout_per_head ? num_heads : 1; }
  at::Tensor setup_layout(int64_t seqlen) const;  // zeros; seqlen is a multiple of block_size
};

struct DenseSparsityConfig : SparsityConfig {
  at::Tensor make_layout(int64_t seqlen) const;
};

// Windows of num_local_blocks. Of each, the last num_global_blocks are seen by all (causal: by those behind); of head h
// those h % num_different_global_patterns places before, so that heads differ.
struct FixedSparsityConfig : SparsityConfig {
  int64_t num_local_blocks = 4, num_global_blocks = 1;
  bool causal = false;
  bool horizontal_global_attention = false;  // global blocks see all, too
  int64_t num_different_global_patterns = 1;

  void check() const;
  void set_global_layout(int64_t head, const at::Tensor& layout) const;  // of one head, [rows, columns]
  at::Tensor make_layout(int64_t seqlen) const;
};

// Windows of several sizes, global blocks or ranges [index, end) of them, random blocks.
struct VariableSparsityConfig : SparsityConfig {
  int64_t num_random_blocks = 0;
  std::vector<int64_t> local_window_blocks{4};
  std::vector<int64_t> global_block_indices{0};
  std::vector<int64_t> global_block_end_indices{};  // empty: one block each
  bool causal = false;
  bool horizontal_global_attention = false;
  std::optional<at::Generator> generator{};  // the CPU's default one

  at::Tensor make_layout(int64_t seqlen) const;
};

// Random blocks, a sliding window, and the first blocks, which see all and are seen by all.
struct BigBirdSparsityConfig : SparsityConfig {
  int64_t num_random_blocks = 1, num_sliding_window_blocks = 3, num_global_blocks = 1;
  bool causal = false;
  std::optional<at::Generator> generator{};

  at::Tensor make_layout(int64_t seqlen) const;
};

// A sliding window, and global blocks or ranges [index, end) of them, which see all and are seen by all.
struct BSLongformerSparsityConfig : SparsityConfig {
  int64_t num_sliding_window_blocks = 3;
  std::vector<int64_t> global_block_indices{0};
  std::vector<int64_t> global_block_end_indices{};
  bool causal = false;

  at::Tensor make_layout(int64_t seqlen) const;
};

// ---- the steps: each writes ones into the layout of one head, int64 [rows, columns] ----

// Dense windows along the diagonal of the sizes listed, the last of them again and again.
void set_windows(const at::Tensor& layout, at::IntArrayRef sizes, bool causal);

// width / 2 blocks on both sides of the diagonal.
void set_sliding_window(const at::Tensor& layout, int64_t width, bool causal);

// Columns begin[i] to end[i] - 1 (end empty: one each), as far as they exist; `rows`: the same rows too.
void set_global(const at::Tensor& layout, at::IntArrayRef begin, at::IntArrayRef end, bool causal, bool rows);

// The first `count` rows and columns.
void set_first_global(const at::Tensor& layout, int64_t count, bool causal);

// `count` different blocks in each row, or all where a causal row has fewer.
void set_random(const at::Tensor& layout, int64_t count, bool causal, std::optional<at::Generator> generator);

// What set_global needs of its lists, and that only layouts that see both ways have global rows.
void check_global(at::IntArrayRef begin, at::IntArrayRef end, bool causal, bool horizontal);

}  // namespace xformers::nn::functional
