#include "benchmarks/attention/rows.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <regex>

namespace xformers::bench {
namespace {

using testing::AttentionCase;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

AttentionCase dense(DType dtype, int64_t seqlen, int64_t head_dim) {
  AttentionCase c;
  c.dtype = dtype;
  c.seqlen_q = c.seqlen_k = seqlen;
  c.heads = 8;
  c.head_dim = head_dim;
  return c;
}

void add(std::vector<Row>& rows, Family family, const AttentionCase& shape, const std::string& what,
         bool with_backward = true) {
  const std::string dtype = name_of(shape.dtype);
  rows.push_back({family, dtype + " forward " + what, shape, false});
  if (with_backward) rows.push_back({family, dtype + " backward " + what, shape, true});
}

void add_dense(std::vector<Row>& rows, DType dtype, bool quick) {
  for (int64_t head_dim : {64, 128}) {
    for (int64_t seqlen : {512, 2048, 8192}) {
      if (quick && (seqlen > 2048 || head_dim > 64)) continue;
      for (bool causal : {false, true}) {
        AttentionCase c = dense(dtype, seqlen, head_dim);
        if (causal) c.band = {kUnbounded, 0, false};
        add(rows, Family::kDense, c,
            (causal ? "causal" : "full") + (" S=" + std::to_string(seqlen)) + " D=" + std::to_string(head_dim));
      }
    }
  }
}

// 256 keys: the query's own and 255 before it.
void add_window(std::vector<Row>& rows, DType dtype, bool quick) {
  const int64_t seqlen = quick ? 2048 : 8192;
  AttentionCase c = dense(dtype, seqlen, 64);
  c.band = {255, 0, true};
  add(rows, Family::kWindow, c, "window 256 S=" + std::to_string(seqlen) + " D=64");
}

// A random eighth of the blocks.
void add_blocks(std::vector<Row>& rows, DType dtype, bool quick) {
  const int64_t seqlen = quick ? 2048 : 8192;
  for (int64_t block : {128, 64, 32, 16}) {
    AttentionCase c = dense(dtype, seqlen, 64);
    c.heads = 2;
    c.block_q = c.block_k = block, c.block_percent = 12;
    c.block_layouts = testing::BlockLayouts::kOne;
    add(rows, Family::kBlocks, c, "blocks of " + std::to_string(block) + " 12% S=" + std::to_string(seqlen) + " D=64");
  }
}

void add_packed(std::vector<Row>& rows, DType dtype, bool quick) {
  std::mt19937 random(64);
  AttentionCase c = dense(dtype, 0, 64);
  const int sequences = quick ? 16 : 64;
  for (int i = 0; i < sequences; ++i) c.lengths_q.push_back(static_cast<int32_t>(16 + random() % (512 - 16 + 1)));
  c.lengths_k = c.lengths_q;
  for (int32_t length : c.lengths_q) c.seqlen_q += length;
  c.seqlen_k = c.seqlen_q;
  const std::string what = "packed " + std::to_string(sequences) + " x 16...512 D=64";
  add(rows, Family::kPacked, c, what);
  c.band = {kUnbounded, 0, false};
  add(rows, Family::kPacked, c, what + " causal");
}

void add_modified(std::vector<Row>& rows, DType dtype, bool quick) {
  const int64_t seqlen = quick ? 512 : 2048, head_dim = 128;
  const std::string size = " S=" + std::to_string(seqlen) + " D=128";
  for (const char* what : {"sinks", "alibi", "softcap"}) {
    for (bool causal : {false, true}) {
      AttentionCase c = dense(dtype, seqlen, head_dim);
      if (causal) c.band = {kUnbounded, 0, false};
      if (what == std::string("sinks")) c.sinks = testing::PerHead::kOfHeads;
      if (what == std::string("alibi")) c.alibi = testing::PerHead::kOfHeads;
      if (what == std::string("softcap")) c.softcap = 30;
      add(rows, Family::kModified, c, what + std::string(causal ? " causal" : " full") + size);
    }
  }
  AttentionCase c = dense(dtype, 0, head_dim);
  c.bias = testing::BiasValues::kRandom;
  c.bias_memory = testing::BiasMemory::kSharedBySequences;
  c.lengths_q.assign(quick ? 4 : 8, 512);
  c.lengths_k = c.lengths_q;
  c.seqlen_q = c.seqlen_k = 512 * static_cast<int64_t>(c.lengths_q.size());
  add(rows, Family::kModified, c, "packed bias " + std::to_string(c.lengths_q.size()) + " x 512 D=128");
}

void add_one_query(std::vector<Row>& rows, DType dtype, bool quick) {
  for (int64_t keys : {4096, 32768}) {
    if (quick && keys > 4096) continue;
    AttentionCase c;
    c.dtype = dtype;
    c.seqlen_q = 1;
    c.seqlen_k = keys;
    c.heads = 32;
    c.kv_heads = 8;
    c.head_dim = 128;
    add(rows, Family::kOneQuery, c, "one query, " + std::to_string(keys) + " keys, 32/8 heads D=128", false);
  }
}

// Text generation: one query per sequence against caches of very different lengths.
void add_decode(std::vector<Row>& rows, bool quick) {
  const auto add_row = [&](int sequences, const std::string& storage, const std::string& words) {
    std::mt19937 random(7);
    const double longest = quick ? 2048 : 16384;
    std::string queries, starts, used;
    for (int i = 0; i < sequences; ++i) {
      const double place = static_cast<double>(random() % 1001) / 1000;
      queries += (i ? "+1" : "q1");
      used += (i ? "+" : "used") + std::to_string(static_cast<int>(128 * std::pow(longest / 128, place)));
      starts += (i ? "+" : "k") + std::to_string(static_cast<int>(longest));
    }
    const bool paged = words.find("page") != std::string::npos;
    const std::string text =
        "attention:bf16," + queries + "," + (paged ? "" : starts + ",") + used + "," + words + "h32,kv8,d128";
    const std::string lengths = "128..." + std::to_string(static_cast<int>(longest));
    add(rows, Family::kDecode, testing::parse_attention_case(text),
        "decode " + std::to_string(sequences) + " x " + lengths + " " + storage + " 32/8 heads D=128", false);
  };
  for (int sequences : {4, 16, 64}) {
    if (quick && sequences > 16) continue;
    add_row(sequences, "padded", "");
    for (int page : {256, 64, 16})
      add_row(sequences, "pages of " + std::to_string(page), "page" + std::to_string(page) + ",");
  }
  add_row(16, "int4 padded", "int4_1,");
  add_row(16, "int4 pages of 256", "page256,int4_1,");
  add_row(16, "fp8 pages of 256", "page256,fp8,");
}

std::vector<Row> filtered(std::vector<Row> rows, const std::string& filter) {
  const std::regex pattern(filter);
  std::erase_if(rows, [&](const Row& row) { return !std::regex_search(row.name, pattern); });
  return rows;
}

// Scores that the band lets through, of one sequence.
double visible_scores(const MaskBand& band, int64_t queries, int64_t keys) {
  double count = 0;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t diagonal = band.bottom_right ? i + keys - queries : i;
    const int64_t first = band.window_left == kUnbounded ? 0 : std::max<int64_t>(0, diagonal - band.window_left);
    const int64_t last = band.window_right == kUnbounded ? keys - 1 : std::min(keys - 1, diagonal + band.window_right);
    count += static_cast<double>(std::max<int64_t>(0, last - first + 1));
  }
  return count;
}

}  // namespace

std::vector<char> visible_blocks(const AttentionCase& c) {
  std::mt19937 random(11);
  std::vector<char> visible((c.seqlen_q + c.block_q - 1) / c.block_q * ((c.seqlen_k + c.block_k - 1) / c.block_k));
  for (char& block : visible) block = static_cast<int64_t>(random() % 100) < c.block_percent;
  return visible;
}

double Row::flops() const {
  double scores = 0;
  if (shape.packed()) {
    const std::vector<int32_t>& keys = shape.used_k.empty() ? shape.lengths_k : shape.used_k;
    for (size_t i = 0; i < keys.size(); ++i) scores += visible_scores(shape.band, shape.lengths_q[i], keys[i]);
  } else {
    scores = static_cast<double>(shape.batch) * visible_scores(shape.band, shape.seqlen_q, shape.seqlen_k);
  }
  if (shape.block_mask()) {
    const std::vector<char> visible = visible_blocks(shape);
    scores *= static_cast<double>(std::count(visible.begin(), visible.end(), 1)) / static_cast<double>(visible.size());
  }
  return (backward ? 2.5 : 1) * 2 * static_cast<double>(shape.heads * (shape.head_dim + shape.dim_v())) * scores;
}

double Row::kv_bytes() const {
  const int64_t heads = shape.kv_heads.value_or(shape.heads);
  const bool plain = shape.kv_format == KvFormat::kPlain;
  int64_t keys = shape.batch * shape.seqlen_k;
  if (!shape.used_k.empty()) keys = std::accumulate(shape.used_k.begin(), shape.used_k.end(), int64_t{0});
  const int64_t coefficients = shape.kv_format == KvFormat::kFp8 ? 2 : 0;  // words beside the rows
  return static_cast<double>(keys * heads *
                             (shape.key_row_size(shape.head_dim) + shape.key_row_size(shape.dim_v()) + coefficients) *
                             (plain ? static_cast<int64_t>(size_of(shape.dtype)) : 4));
}

std::vector<Row> attention_rows(const RowOptions& options) {
  std::vector<Row> rows;
  for (DType dtype : kDTypes) add_dense(rows, dtype, options.quick);
  for (DType dtype : kDTypes) add_window(rows, dtype, options.quick);
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) add_blocks(rows, dtype, options.quick);
  for (DType dtype : kDTypes) add_packed(rows, dtype, options.quick);
  for (DType dtype : kDTypes) add_modified(rows, dtype, options.quick);
  for (DType dtype : kDTypes) add_one_query(rows, dtype, options.quick);
  add_decode(rows, options.quick);
  return filtered(rows, options.filter);
}

std::vector<Row> memory_rows(const RowOptions& options) {
  std::vector<Row> rows;
  const int64_t seqlen = options.quick ? 8192 : 32768;
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    AttentionCase c = dense(dtype, seqlen, 64);
    c.band = {kUnbounded, 0, false};
    add(rows, Family::kDense, c, "memory causal S=" + std::to_string(seqlen) + " D=64");
  }
  return filtered(rows, options.filter);
}

}  // namespace xformers::bench
