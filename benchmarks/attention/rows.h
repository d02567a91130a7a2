// The table: which attention problems are measured.
#pragma once

#include <string>
#include <vector>

#include "tests/cases/attention.h"

namespace xformers::bench {

// kModified: against the same without what is done to its scores; a bias of packed sequences against one of a batch.
// kBlocks: a block mask, also against the rate of the same without.
enum class Family { kDense, kWindow, kBlocks, kPacked, kModified, kOneQuery, kDecode };

// Families that read each key once and do little else: they are measured in bytes.
constexpr bool reads_memory(Family family) { return family == Family::kOneQuery || family == Family::kDecode; }

struct Row {
  Family family;
  std::string name;  // "fp32 forward causal S=2048 D=64": what --filter matches
  testing::AttentionCase shape;
  bool backward = false;

  double flops() const;     // 4 * head_dim per visible score, 2.5 times that backward
  double kv_bytes() const;  // of key and value, read once
};

struct RowOptions {
  bool quick = false;
  std::string filter;  // regular expression
};

// Of a row with a block mask: which of its blocks are visible, [rows][columns] of blocks, the same for all heads.
std::vector<char> visible_blocks(const testing::AttentionCase& shape);

std::vector<Row> attention_rows(const RowOptions& options);

// S 32768 (8192 when quick), H 8: what peak memory is measured on.
std::vector<Row> memory_rows(const RowOptions& options);

}  // namespace xformers::bench
