// What the kernels' objections, plans and arguments depend on, found out once per call: how tensors lie in memory,
// which heads share keys, what happens to scores. Plain C++.
#pragma once

#include "xformers/kernels/base/kernel_list.h"
#include "xformers/kernels/cuda/attention/features.h"
#include "xformers/kernels/cuda/base/device.h"
#include "xformers/kernels/params/attention.h"

namespace xformers::cuda {

struct ProblemFacts {
  DeviceProperties device;
  int64_t total_rows = 0;  // batch * num_heads * seqlen_q
  int64_t sequences = 1;   // of packed layouts, at least 1; lengths are known on the GPU alone
  bool banded = false;     // some queries don't see some keys
  RowAccess q = RowAccess::kAny, kv = RowAccess::kAny;
  RowAccess bias = RowAccess::kChunks;  // also where there is none
  int keys = 0;                         // KeyForm
  int score_ops = 0;                    // ScoreOp
};

struct FwdFacts : ProblemFacts {
  int packed_heads = 1;  // heads that share the rows of K and V go into one tile
  RowAccess out = RowAccess::kAny;
  bool out_pairs = false;  // rows of out begin at units of two elements
};

struct BwdFacts : ProblemFacts {
  RowAccess dout = RowAccess::kAny, dq = RowAccess::kAny, dkv = RowAccess::kAny, dbias = RowAccess::kChunks;
  bool dbias_pairs = true;  // rows of dbias begin at units of two elements
};

FwdFacts facts_of(const AttentionFwdParams& p);
BwdFacts facts_of(const AttentionBwdParams& p);

// The first of them that isn't kChunks is kAny.
template <class... Access>
constexpr RowAccess access_of(Access... each) {
  return ((each == RowAccess::kChunks) && ...) ? RowAccess::kChunks : RowAccess::kAny;
}

// What a kernel that takes `features` has against the call.
void require(const FwdFacts& facts, Features features, Reasons& reasons);

// Tiles of block_m rows (queries x packed heads) in all, at most.
int64_t row_tiles(const AttentionFwdParams& p, const FwdFacts& facts, int block_m);

}  // namespace xformers::cuda
