// Runs cases on the GPU: every tensor is copied to memory of its own, as large as its elements reach, padding included,
// and the outputs are copied back.
#include <cstdint>
#include <stdexcept>

#include "tests/kernels/attention_backend.h"
#include "tests/kernels/device_mirror.h"
#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/cuda/attention/attention_cuda.h"
#include "xformers/kernels/params/sequence.h"

namespace xformers::testing {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 30;

int64_t reach(std::initializer_list<std::pair<int64_t, int64_t>> sizes_and_strides) {
  int64_t last = 0;
  for (const auto& [size, stride] : sizes_and_strides) {
    if (size == 0) return 0;
    last += (size - 1) * stride;
  }
  if (last >= kMostElements) throw std::length_error("too large to copy");
  return last + 1;
}

// Calls visit(pointer, bytes) for every array of the parameters.
template <class Visit>
class Arrays {
 public:
  Arrays(const AttentionProblem& p, const Visit& visit)
      : shape_(p.shape), seq_(p.seq), visit_(visit), page_entries_(page_entries(p.seq)) {}

  void heads(HeadsTensor& t, int64_t seqlen, int64_t dim, size_t size) const {
    visit_(t.data, static_cast<size_t>(reach({{shape_.batch, t.batch_stride},
                                              {seqlen, t.seq_stride},
                                              {shape_.num_groups, t.group_stride},
                                              {shape_.heads_per_group, t.head_stride},
                                              {dim, 1}})) *
                       size);
  }
  void keys(HeadsTensor& t, int64_t dim, const KvQuantization& how) const {
    switch (how.format) {
      case KvFormat::kPlain: return heads(t, shape_.seqlen_k, dim, size_of(shape_.dtype));
      case KvFormat::kInt4: return heads(t, shape_.seqlen_k, how.num_groups + dim / 8, 4);
      case KvFormat::kFp8: return heads(t, shape_.seqlen_k, dim / 4, 4);
    }
  }
  void rows(RowTensor& t) const {
    visit_(t.data, static_cast<size_t>(reach({{shape_.batch, t.batch_stride},
                                              {shape_.num_groups, t.group_stride},
                                              {shape_.heads_per_group, t.head_stride},
                                              {shape_.seqlen_q, 1}})) *
                       (shape_.dtype == DType::kFloat64 ? 8 : 4));
  }
  void bias(ScoreBias& t, size_t size) const {
    visit_(t.data, static_cast<size_t>(reach({{num_sequences(shape_, seq_), t.batch_stride},
                                              {shape_.num_groups, t.group_stride},
                                              {shape_.heads_per_group, t.head_stride},
                                              {seq_.packed() ? seq_.most_queries : shape_.seqlen_q, t.q_stride},
                                              {seq_.packed() ? seq_.most_keys : shape_.seqlen_k, t.k_stride}})) *
                       size);
  }
  void numbers(HeadNumbers& t) const {
    visit_(t.data, static_cast<size_t>(reach({{num_sequences(shape_, seq_), t.sequence_stride},
                                              {shape_.num_groups, t.group_stride},
                                              {shape_.heads_per_group, t.head_stride}})) *
                       (shape_.dtype == DType::kFloat64 ? 8 : 4));
  }
  void modifiers(ScoreModifiers& mods) const {
    bias(mods.bias, size_of(shape_.dtype));
    numbers(mods.alibi_slopes);
    numbers(mods.sinks);
  }
  // Behind the last entry of a list nothing is read.
  void blocks(BlockMask& mask) const {
    if (!mask.present()) return;
    const int64_t layouts = reach({{shape_.batch, mask.batch_stride},
                                   {shape_.num_groups, mask.group_stride},
                                   {shape_.heads_per_group, mask.head_stride}});
    const int64_t rows = layouts * (mask.num_q_blocks + 1), columns = layouts * (mask.num_k_blocks + 1);
    int64_t keys = 0, queries = 0, with_bits = 0;
    if (on_host(mask.key_offsets)) {
      keys = mask.key_offsets[rows - 1], queries = mask.query_offsets[columns - 1];
      for (int64_t entry = 0; mask.bits_of && entry < keys; ++entry) {
        with_bits = std::max<int64_t>(with_bits, mask.bits_of[entry] + 1);
      }
    }
    visit_(mask.key_offsets, static_cast<size_t>(rows) * 4);
    visit_(mask.key_blocks, static_cast<size_t>(keys) * 4);
    visit_(mask.query_offsets, static_cast<size_t>(columns) * 4);
    visit_(mask.query_blocks, static_cast<size_t>(queries) * 4);
    visit_(mask.bits_of, static_cast<size_t>(keys) * 4);
    visit_(mask.bits, static_cast<size_t>(with_bits * mask.block_q * (mask.block_k / 16)) * 2);
  }
  void layout(SeqLayout& seq) const {
    const int64_t n = seq_.num_sequences;
    visit_(seq.cu_seqlens_q, static_cast<size_t>(n + 1) * 4);
    visit_(seq.cu_seqlens_k, static_cast<size_t>(seq_.seqused_k ? n : n + 1) * 4);
    visit_(seq.seqused_k, static_cast<size_t>(n) * 4);
    visit_(seq.pages.data, page_entries_ * 4);
  }

 private:
  static bool on_host(const void* pointer) {
    cudaPointerAttributes where{};
    return cudaPointerGetAttributes(&where, pointer) == cudaSuccess && where.type != cudaMemoryTypeDevice;
  }
  // Up to the last entry that may be read. (The second visit, with device pointers, needs no sizes.)
  static size_t page_entries(const SeqLayout& seq) {
    int64_t entries = 0;
    if (!seq.paged() || !on_host(seq.seqused_k)) return 0;
    for (int64_t b = 0; b < seq.num_sequences; ++b) {
      const int64_t end = (seq.cu_seqlens_k ? seq.cu_seqlens_k[b] : 0) + seq.seqused_k[b];
      const int64_t pages = (end + seq.pages.page_size - 1) / seq.pages.page_size;
      if (pages > 0) entries = std::max(entries, b * seq.pages.row_stride + pages);
    }
    return static_cast<size_t>(entries);
  }

  const AttentionShape& shape_;
  const SeqLayout seq_;
  const Visit& visit_;
  const size_t page_entries_;
};

template <class Visit>
void for_each_array(AttentionFwdParams& p, const Visit& visit) {
  const Arrays arrays(p, visit);
  const AttentionShape& s = p.shape;
  const size_t size = size_of(s.dtype);
  arrays.heads(p.q, s.seqlen_q, s.head_dim, size);
  arrays.keys(p.k, s.head_dim, p.quantization);
  arrays.keys(p.v, s.head_dim_v, p.quantization);
  arrays.heads(p.quantization.k_scale_shift, s.seqlen_k, 1, 4);
  arrays.heads(p.quantization.v_scale_shift, s.seqlen_k, 1, 4);
  arrays.heads(p.out, s.seqlen_q, s.head_dim_v, p.wide_out ? std::max<size_t>(size, 4) : size);
  arrays.rows(p.lse);
  arrays.rows(p.lse_low);
  arrays.layout(p.seq);
  arrays.blocks(p.blocks);
  arrays.modifiers(p.mods);
}

template <class Visit>
void for_each_array(AttentionBwdParams& p, const Visit& visit) {
  const Arrays arrays(p, visit);
  const AttentionShape& s = p.shape;
  const size_t size = size_of(s.dtype);
  for (HeadsTensor* t : {&p.q, &p.dq}) arrays.heads(*t, s.seqlen_q, s.head_dim, size);
  for (HeadsTensor* t : {&p.out, &p.dout}) arrays.heads(*t, s.seqlen_q, s.head_dim_v, size);
  for (HeadsTensor* t : {&p.k, &p.dk}) arrays.heads(*t, s.seqlen_k, s.head_dim, size);
  for (HeadsTensor* t : {&p.v, &p.dv}) arrays.heads(*t, s.seqlen_k, s.head_dim_v, size);
  arrays.rows(p.lse);
  arrays.rows(p.lse_low);
  arrays.rows(p.dlse);
  arrays.layout(p.seq);
  arrays.blocks(p.blocks);
  arrays.modifiers(p.mods);
  arrays.bias(p.dbias, p.dbias_shared ? std::max<size_t>(size, 4) : size);
  arrays.numbers(p.dslopes);
  arrays.numbers(p.dsinks);
}

template <class Params, class Choose, class Run>
void run_on_device(const Params& host, const Choose& choose, const Run& run) {
  Params device = host;
  DeviceMirror mirror;
  for_each_array(device, [&](auto*& pointer, size_t bytes) { mirror.add(pointer, bytes); });
  mirror.upload();
  for_each_array(device, [&](auto*& pointer, size_t) { mirror.translate(pointer); });
  const auto choice = choose(device);
  const DeviceBuffer workspace(choice.workspace);
  check(cudaMemset(workspace.data(), 0xFF, choice.workspace), "filling the workspace with NaN");
  run(choice, device, {.stream = nullptr, .workspace = workspace.data()});
  check(cudaDeviceSynchronize(), "the kernels");
  mirror.download();
}

}  // namespace

void run_forward(const AttentionFwdParams& params, int) {
  run_on_device(params, cuda::choose_forward, cuda::attention_forward);
}
void run_backward(const AttentionBwdParams& params, int threads) {
  AttentionBwdParams p = params;
  p.deterministic = threads == 1;  // the word t1 of a case
  run_on_device(p, cuda::choose_backward, cuda::attention_backward);
}

std::vector<std::string> forward_kernels() { return cuda::forward_kernels(); }
std::vector<std::string> backward_kernels() { return cuda::backward_kernels(); }
std::string last_forward_kernel() { return std::string(cuda::last_forward_kernel()); }
std::string last_backward_kernel() { return std::string(cuda::last_backward_kernel()); }

std::string last_kernels() {
  return std::string(cuda::last_forward_kernel()) + ", " + std::string(cuda::last_backward_kernel());
}

}  // namespace xformers::testing
