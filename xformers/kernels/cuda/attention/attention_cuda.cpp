#include "xformers/kernels/cuda/attention/attention_cuda.h"

#include <cmath>
#include <cstdint>

#include "xformers/kernels/cuda/attention/built_instances.h"
#include "xformers/kernels/cuda/attention/kernel_list.h"
#include "xformers/kernels/cuda/attention/passes.h"
#include "xformers/kernels/cuda/attention/sm80/bwd_policy.h"
#include "xformers/kernels/cuda/attention/sm80/fwd_policy.h"
#include "xformers/kernels/cuda/attention/tiles.h"
#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/base/device.h"

namespace xformers::cuda {
namespace {

constexpr double kLog2e = 1.4426950408889634074;
constexpr int64_t kMaxSeqlen = int64_t{1} << 30;  // seqlen.cuh
constexpr int64_t kMinKeysPerSplit = 256;         // below this, merging costs more than the split gains
constexpr int64_t kMaxSplits = 128;

thread_local std::string_view last_forward, last_backward;

cudaStream_t to_stream(const Stream& stream) { return static_cast<cudaStream_t>(stream.stream); }
double kept_factor(const Dropout& dropout) { return dropout.p < 1 ? 1 / (1 - dropout.p) : 0; }

// Rows begin at multiples of `bytes`. Strides of dimensions with one entry don't matter.
bool is_aligned(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t element_size,
                int64_t bytes) {
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride * element_size % bytes == 0; };
  return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0 &&
         fits(shape.batch, t.batch_stride) && fits(seqlen, t.seq_stride) && fits(shape.num_groups, t.group_stride) &&
         fits(shape.heads_per_group, t.head_stride);
}
bool rows_of_16_bytes(const HeadsTensor& t, const AttentionShape& shape, int64_t seqlen, int64_t dim) {
  return dim % 8 == 0 && is_aligned(t, shape, seqlen, 2, 16);
}

int64_t widest(const AttentionShape& shape) { return std::max(shape.head_dim, shape.head_dim_v); }
bool is_half(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

// The smallest built head_dim that holds both head dims, or null.
template <class Launch>
const Instance<Launch>* find_instance(const std::vector<Instance<Launch>>& built, const AttentionShape& shape) {
  const Instance<Launch>* best = nullptr;
  for (const auto& each : built) {
    if (each.dtype == shape.dtype && each.head_dim >= widest(shape) && (!best || each.head_dim < best->head_dim)) {
      best = &each;
    }
  }
  return best;
}

template <class Launch>
void add_instance_reasons(const std::vector<Instance<Launch>>& built, const AttentionShape& shape, Reasons& reasons) {
  if (!is_half(shape.dtype)) {
    reasons.push_back(std::string("dtype is ") + name_of(shape.dtype) + ", expected bf16 or fp16");
  } else if (!find_instance(built, shape)) {
    int64_t most = 0;
    for (const auto& each : built) {
      if (each.dtype == shape.dtype) most = std::max<int64_t>(most, each.head_dim);
    }
    reasons.push_back("head_dim or head_dim_v is " + std::to_string(widest(shape)) + ", expected at most " +
                      std::to_string(most) + " (what was built)");
  }
}

void add_smem_reason(int bytes, Reasons& reasons) {
  const int available = current_device().smem_per_block;
  if (bytes > available) {
    reasons.push_back("it needs " + std::to_string(bytes) + " bytes of shared memory, this GPU has " +
                      std::to_string(available));
  }
}

// ---- forward ----

// Heads that share the rows of K and V go into one tile.
int packed_heads(const AttentionFwdParams& p) {
  const bool shared = p.shape.heads_per_group > 1 && p.k.head_stride == 0 && p.v.head_stride == 0 &&
                      (p.quantization.format != KvFormat::kFp8 || (p.quantization.k_scale_shift.head_stride == 0 &&
                                                                   p.quantization.v_scale_shift.head_stride == 0));
  return shared ? static_cast<int>(p.shape.heads_per_group) : 1;
}

// Keys that one sequence may have.
int64_t most_keys(const AttentionFwdParams& p) {
  return p.seq.paged() ? p.seq.pages.max_pages * p.seq.pages.page_size : p.shape.seqlen_k;
}

int64_t row_tiles(const AttentionFwdParams& p, int block_m) {
  const int pack = packed_heads(p);
  return max_tiles(p.shape.seqlen_q * pack, p.seq, block_m) * p.shape.batch * p.shape.num_heads() / pack;
}

// Splits that fill the GPU twice over.
int64_t choose_splits(const AttentionFwdParams& p) {
  constexpr int kBlockM = sm80::fwd_policy(128, Features::kGeneral).block_m();
  if (p.num_splits > 0) return std::min(p.num_splits, kMaxSplits);
  const int64_t blocks = std::max<int64_t>(row_tiles(p, kBlockM), 1);
  const int64_t wanted = (2 * current_device().multiprocessors + blocks - 1) / blocks;
  return std::clamp<int64_t>(std::min(wanted, most_keys(p) / kMinKeysPerSplit), 1, kMaxSplits);
}

bool q_aligned(const AttentionFwdParams& p) {
  return rows_of_16_bytes(p.q, p.shape, p.shape.seqlen_q, p.shape.head_dim);
}
bool kv_aligned(const AttentionFwdParams& p) {
  return rows_of_16_bytes(p.k, p.shape, p.shape.seqlen_k, p.shape.head_dim) &&
         rows_of_16_bytes(p.v, p.shape, p.shape.seqlen_k, p.shape.head_dim_v);
}

FwdArgs forward_args(const AttentionFwdParams& p) {
  FwdArgs args;
  args.p = p;
  args.scale_log2 = static_cast<float>(p.softmax_scale * kLog2e);
  args.kept = kept_factor(p.dropout);
  return args;
}

FwdArgs sm80_args(const AttentionFwdParams& p) {
  FwdArgs args = forward_args(p);
  args.packed_heads = packed_heads(p);
  args.aligned_q = q_aligned(p);
  args.aligned_kv = kv_aligned(p);
  args.aligned_out = p.wide_out ? is_aligned(p.out, p.shape, p.shape.seqlen_q, 4, 8)
                                : is_aligned(p.out, p.shape, p.shape.seqlen_q, 2, 4);
  args.chunked_out = !p.wide_out && rows_of_16_bytes(p.out, p.shape, p.shape.seqlen_q, p.shape.head_dim_v);
  return args;
}

// Rows of a bias in units of 16 bytes: what cp.async takes. The gradient is written in units of 4.
bool bias_aligned(const ScoreBias& bias, const AttentionShape& shape, int64_t elements) {
  if (!bias.data) return true;
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride % elements == 0; };
  return bias.k_stride == 1 && reinterpret_cast<uintptr_t>(bias.data) % static_cast<uintptr_t>(2 * elements) == 0 &&
         fits(shape.batch, bias.batch_stride) && fits(shape.num_groups, bias.group_stride) &&
         fits(shape.heads_per_group, bias.head_stride) && fits(shape.seqlen_q, bias.q_stride);
}

// What neither fwd_sm80 nor fwd_sm80_scored takes.
Reasons why_not_fast(const AttentionFwdParams& p, Features features) {
  Reasons reasons;
  add_instance_reasons(built_forward(), p.shape, reasons);
  if (const auto* instance = find_instance(built_forward(), p.shape)) {
    add_smem_reason(sm80::fwd_policy(instance->head_dim, features).smem_bytes(), reasons);
  }
  if (p.seq.paged()) reasons.push_back("paged keys");
  if (p.quantization.format != KvFormat::kPlain) {
    reasons.push_back("quantised keys");
  } else if (!q_aligned(p) || !kv_aligned(p)) {
    reasons.push_back("rows of q, k or v are not in units of 16 bytes");
  }
  if (p.num_splits > 1) reasons.push_back("num_splits is " + std::to_string(p.num_splits));
  if (p.num_splits == 0 && reasons.empty() && choose_splits(p) > 1 &&
      row_tiles(p, sm80::fwd_policy(128, features).block_m()) < current_device().multiprocessors) {
    reasons.push_back("few queries: splitting the keys fills the GPU");
  }
  return reasons;
}

Reasons why_not_fwd_sm80(const AttentionFwdParams& p) {
  Reasons reasons = why_not_fast(p, Features::kPlain);
  if (p.bias.data) reasons.push_back("bias");
  if (p.dropout.p > 0) reasons.push_back("dropout");
  if (!(p.softmax_scale > 0)) reasons.push_back("softmax_scale is not positive");
  return reasons;
}
Reasons why_not_fwd_sm80_scored(const AttentionFwdParams& p) {
  Reasons reasons = why_not_fast(p, Features::kScored);
  if (!bias_aligned(p.bias, p.shape, 8)) reasons.push_back("rows of the bias are not in units of 16 bytes");
  return reasons;
}
size_t no_workspace(const AttentionFwdParams&) { return 0; }
template <Features kFeatures>
void run_fwd_fast(const AttentionFwdParams& p, const Stream& stream) {
  find_instance(built_forward(), p.shape)->launch(sm80_args(p), kFeatures, to_stream(stream));
}

Reasons why_not_fwd_sm80_general(const AttentionFwdParams& p) {
  Reasons reasons;
  add_instance_reasons(built_forward(), p.shape, reasons);
  if (const auto* instance = find_instance(built_forward(), p.shape)) {
    add_smem_reason(sm80::fwd_policy(instance->head_dim, Features::kGeneral).smem_bytes(), reasons);
  }
  return reasons;
}
size_t fwd_general_workspace(const AttentionFwdParams& p) {
  const int64_t splits = choose_splits(p);
  const int64_t rows = p.shape.batch * p.shape.num_heads() * p.shape.seqlen_q;
  return splits > 1 ? static_cast<size_t>(splits * rows * (p.shape.head_dim_v + 2)) * sizeof(float) : 0;
}
void run_fwd_sm80_general(const AttentionFwdParams& p, const Stream& stream) {
  FwdArgs args = sm80_args(p);
  args.num_splits = static_cast<int>(choose_splits(p));
  const auto* instance = find_instance(built_forward(), p.shape);
  if (args.num_splits == 1) return instance->launch(args, Features::kGeneral, to_stream(stream));
  args.total_rows = p.shape.batch * p.shape.num_heads() * p.shape.seqlen_q;
  const int64_t partial_rows = args.num_splits * args.total_rows;
  args.lse_partial = static_cast<float*>(stream.workspace);
  args.out_partial = args.lse_partial + (partial_rows + 1) / 2 * 2;
  if (p.seq.packed()) clear_partial_lse(args, to_stream(stream));
  instance->launch(args, Features::kGeneral, to_stream(stream));
  merge_splits(args, to_stream(stream));
}

Reasons nothing_against(const AttentionFwdParams&) { return {}; }
void run_fwd_simt(const AttentionFwdParams& p, const Stream& stream) {
  const FwdArgs args = forward_args(p);
  switch (p.shape.dtype) {
    case DType::kFloat32: return simt::launch_forward<fp32>(args, to_stream(stream));
    case DType::kFloat64: return simt::launch_forward<fp64>(args, to_stream(stream));
    case DType::kBFloat16: return simt::launch_forward<bf16>(args, to_stream(stream));
    case DType::kFloat16: return simt::launch_forward<fp16>(args, to_stream(stream));
  }
}

// ---- backward ----

int64_t statistics_bytes(const AttentionBwdParams& p) {  // one of lse and delta
  const int64_t rows = p.shape.batch * p.shape.num_heads() * p.shape.seqlen_q;
  return (rows * (p.shape.dtype == DType::kFloat64 ? 8 : 4) + 255) / 256 * 256;
}

bool aligned_backward(const AttentionBwdParams& p) {
  const AttentionShape& s = p.shape;
  return rows_of_16_bytes(p.q, s, s.seqlen_q, s.head_dim) && rows_of_16_bytes(p.k, s, s.seqlen_k, s.head_dim) &&
         rows_of_16_bytes(p.v, s, s.seqlen_k, s.head_dim_v) && rows_of_16_bytes(p.dout, s, s.seqlen_q, s.head_dim_v) &&
         is_aligned(p.dq, s, s.seqlen_q, 2, 4) && is_aligned(p.dk, s, s.seqlen_k, 2, 4) &&
         is_aligned(p.dv, s, s.seqlen_k, 2, 4);
}
Features backward_features(const AttentionBwdParams& p) {
  if (!aligned_backward(p) || !bias_aligned(p.bias, p.shape, 8) || !bias_aligned(p.dbias, p.shape, 2)) {
    return Features::kGeneral;
  }
  return p.bias.data || p.dropout.p > 0 ? Features::kScored : Features::kPlain;
}

BwdArgs backward_args(const AttentionBwdParams& p, const Stream& stream) {
  BwdArgs args;
  args.p = p;
  args.scale_log2 = static_cast<float>(p.softmax_scale * kLog2e);
  args.kept = kept_factor(p.dropout);
  args.lse = stream.workspace;
  args.delta = static_cast<char*>(stream.workspace) + statistics_bytes(p);
  return args;
}

// What every backward does before its products.
void begin_backward(const BwdArgs& args, double lse_factor, cudaStream_t stream) {
  const AttentionBwdParams& p = args.p;
  prepare_backward(args, lse_factor, stream);
  const bool sees_all = p.band.window_left == kUnbounded && p.band.window_right == kUnbounded;
  if (p.dbias.data && !sees_all) clear_bias_gradient(p, stream);  // else every element is written
  if (!p.seq.packed()) return;
  clear_uncovered(p.dq, p.shape.dtype, p.shape.head_dim, p.shape, p.seq, Rows::kQueries, stream);
  clear_uncovered(p.dk, p.shape.dtype, p.shape.head_dim, p.shape, p.seq, Rows::kKeys, stream);
  clear_uncovered(p.dv, p.shape.dtype, p.shape.head_dim_v, p.shape, p.seq, Rows::kKeys, stream);
}

struct DqSums {
  int64_t blocks, bytes, turns_bytes;  // blocks of queries per head
};
DqSums dq_sums(const AttentionBwdParams& p, int head_dim) {
  const sm80::BwdPolicy policy = sm80::bwd_policy(head_dim, backward_features(p));
  const int64_t blocks = max_tiles(p.shape.seqlen_q, p.seq, policy.block_m);
  const int64_t all = blocks * p.shape.batch * p.shape.num_heads();
  return {blocks, all * policy.block_m * head_dim * 4, p.deterministic ? (all * 4 + 255) / 256 * 256 : 0};
}

Reasons why_not_bwd_sm80(const AttentionBwdParams& p) {
  Reasons reasons;
  add_instance_reasons(built_backward(), p.shape, reasons);
  if (const auto* instance = find_instance(built_backward(), p.shape)) {
    add_smem_reason(sm80::bwd_policy(instance->head_dim, Features::kGeneral).smem_bytes(), reasons);
  }
  return reasons;
}
size_t bwd_sm80_workspace(const AttentionBwdParams& p) {
  const DqSums sums = dq_sums(p, find_instance(built_backward(), p.shape)->head_dim);
  return static_cast<size_t>(2 * statistics_bytes(p) + sums.bytes + sums.turns_bytes);
}
void run_bwd_sm80(const AttentionBwdParams& p, const Stream& stream) {
  const auto* instance = find_instance(built_backward(), p.shape);
  const DqSums sums = dq_sums(p, instance->head_dim);
  BwdArgs args = backward_args(p, stream);
  args.aligned = aligned_backward(p);
  args.query_blocks = sums.blocks;
  char* const memory = static_cast<char*>(stream.workspace) + 2 * statistics_bytes(p);
  args.dq_sum = reinterpret_cast<float*>(memory);
  if (p.deterministic) args.turns = reinterpret_cast<int*>(memory + sums.bytes);
  if (sums.bytes > 0) {
    XFORMERS_CUDA_CHECK(
        cudaMemsetAsync(memory, 0, static_cast<size_t>(sums.bytes + sums.turns_bytes), to_stream(stream)));
  }
  begin_backward(args, kLog2e, to_stream(stream));
  instance->launch(args, backward_features(p), to_stream(stream));
}

Reasons nothing_against(const AttentionBwdParams&) { return {}; }
size_t bwd_simt_workspace(const AttentionBwdParams& p) { return static_cast<size_t>(2 * statistics_bytes(p)); }
void run_bwd_simt(const AttentionBwdParams& p, const Stream& stream) {
  const BwdArgs args = backward_args(p, stream);
  begin_backward(args, 1, to_stream(stream));
  switch (p.shape.dtype) {
    case DType::kFloat32: return simt::launch_backward<fp32>(args, to_stream(stream));
    case DType::kFloat64: return simt::launch_backward<fp64>(args, to_stream(stream));
    case DType::kBFloat16: return simt::launch_backward<bf16>(args, to_stream(stream));
    case DType::kFloat16: return simt::launch_backward<fp16>(args, to_stream(stream));
  }
}

// Best first; the last one takes everything.
const std::vector<Kernel<AttentionFwdParams>>& forward_list() {
  static const std::vector<Kernel<AttentionFwdParams>> list = {
      {"fwd_sm80", why_not_fwd_sm80, no_workspace, run_fwd_fast<Features::kPlain>},
      {"fwd_sm80_scored", why_not_fwd_sm80_scored, no_workspace, run_fwd_fast<Features::kScored>},
      {"fwd_sm80_general", why_not_fwd_sm80_general, fwd_general_workspace, run_fwd_sm80_general},
      {"fwd_simt", nothing_against, no_workspace, run_fwd_simt},
  };
  return list;
}
const std::vector<Kernel<AttentionBwdParams>>& backward_list() {
  static const std::vector<Kernel<AttentionBwdParams>> list = {
      {"bwd_sm80", why_not_bwd_sm80, bwd_sm80_workspace, run_bwd_sm80},
      {"bwd_simt", nothing_against, bwd_simt_workspace, run_bwd_simt},
  };
  return list;
}

void check(const AttentionShape& shape, const SeqLayout& seq, const MaskBand& band, const Dropout& dropout) {
  if (shape.batch < 0 || shape.seqlen_q < 0 || shape.seqlen_k < 0 || shape.num_groups < 0 ||
      shape.heads_per_group < 0 || shape.head_dim < 1 || shape.head_dim_v < 1) {
    throw Error(
        "attention: a size is negative, or head_dim or head_dim_v is below 1; expected sizes >= 0 and head dims >= 1.  "
        "Fix: see AttentionShape");
  }
  const int64_t heads = std::max<int64_t>(shape.heads_per_group, 1);
  if (shape.seqlen_q * heads >= kMaxSeqlen || (!seq.paged() && shape.seqlen_k >= kMaxSeqlen) ||
      (seq.paged() && seq.pages.max_pages * seq.pages.page_size >= kMaxSeqlen)) {
    throw Error(
        "attention: a sequence has 2^30 queries x heads of a group, or keys, or more, expected fewer.  Fix: cut it");
  }
  if (seq.packed() && (shape.batch != 1 || (!seq.cu_seqlens_k && !seq.paged()))) {
    throw Error("attention: packed sequences with batch " + std::to_string(shape.batch) +
                (seq.cu_seqlens_k ? "" : " and no cu_seqlens_k") +
                ", expected batch 1 and both offset arrays.  Fix: concatenate the sequences along seqlen");
  }
  if (band.window_left < kUnbounded || band.window_right < kUnbounded) {
    throw Error("attention: a window is below -1, expected >= 0, or -1 for unbounded.  Fix: see MaskBand");
  }
  if (!(dropout.p >= 0 && dropout.p <= 1)) {
    throw Error("attention: dropout p is " + std::to_string(dropout.p) +
                ", expected 0 <= p <= 1.  Fix: pass the probability of dropping");
  }
}

template <class Params>
const Kernel<Params>& checked_kernel(const std::vector<Kernel<Params>>& list, const Params& p) {
  check(p.shape, p.seq, p.band, p.dropout);
  return choose(list, p);
}

bool has_rows(const AttentionShape& shape) { return shape.batch > 0 && shape.num_heads() > 0; }

}  // namespace

size_t forward_workspace(const AttentionFwdParams& params) {
  return has_rows(params.shape) ? checked_kernel(forward_list(), params).workspace(params) : 0;
}
size_t backward_workspace(const AttentionBwdParams& params) {
  return has_rows(params.shape) ? checked_kernel(backward_list(), params).workspace(params) : 0;
}

void attention_forward(const AttentionFwdParams& params, const Stream& stream) {
  const auto& kernel = checked_kernel(forward_list(), params);
  last_forward = kernel.name;
  if (!has_rows(params.shape) || params.shape.seqlen_q == 0) return;
  if (params.seq.packed()) {
    clear_uncovered(params.out,
                    params.wide_out ? (params.shape.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32)
                                    : params.shape.dtype,
                    params.shape.head_dim_v, params.shape, params.seq, Rows::kQueries, to_stream(stream));
    if (params.lse.data) clear_uncovered(params.lse, params.shape, params.seq, to_stream(stream));
  }
  kernel.run(params, stream);
}

void attention_backward(const AttentionBwdParams& params, const Stream& stream) {
  const auto& kernel = checked_kernel(backward_list(), params);
  last_backward = kernel.name;
  if (has_rows(params.shape)) kernel.run(params, stream);
}

std::vector<std::string> forward_kernels() { return names(forward_list()); }
std::vector<std::string> backward_kernels() { return names(backward_list()); }
std::vector<std::string> why_not_forward(std::string_view kernel, const AttentionFwdParams& params) {
  return reasons_of(forward_list(), kernel, params);
}
std::vector<std::string> why_not_backward(std::string_view kernel, const AttentionBwdParams& params) {
  return reasons_of(backward_list(), kernel, params);
}
std::string_view last_forward_kernel() { return last_forward; }
std::string_view last_backward_kernel() { return last_backward; }

}  // namespace xformers::cuda
