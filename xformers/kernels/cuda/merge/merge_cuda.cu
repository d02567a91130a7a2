// Entry points of the merge: how rows are spread over threads, where the list of parts lies, and pieces of a call that
// has more rows than 32 bits count.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "xformers/kernels/cuda/base/cuda_check.h"
#include "xformers/kernels/cuda/merge/alike_args.h"
#include "xformers/kernels/cuda/merge/merge_args.h"
#include "xformers/kernels/cuda/merge/merge_cuda.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cuda {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 30;

// Rows begin at multiples of 16 bytes of the parts' elements, or of as many elements in another dtype.
bool is_aligned(const HeadsTensor& t, const MergeShape& s, size_t element_size) {
  const int64_t elements = 16 / static_cast<int64_t>(size_of(s.dtype));
  const size_t bytes = std::min<size_t>(16, static_cast<size_t>(elements) * element_size);
  const auto fits = [&](int64_t size, int64_t stride) { return size <= 1 || stride % elements == 0; };
  return reinterpret_cast<uintptr_t>(t.data) % bytes == 0 && s.head_dim % elements == 0 &&
         fits(s.batch, t.batch_stride) && fits(s.seqlen, t.seq_stride) && fits(s.num_groups, t.group_stride) &&
         fits(s.heads_per_group, t.head_stride);
}

bool have_same_strides(const MergePart* parts, int64_t count) {
  const auto same = [](const HeadsTensor& a, const HeadsTensor& b) {
    return a.batch_stride == b.batch_stride && a.seq_stride == b.seq_stride && a.group_stride == b.group_stride &&
           a.head_stride == b.head_stride;
  };
  return std::all_of(parts, parts + count, [&](const MergePart& part) {
    return same(part.out, parts[0].out) && same(part.lse, parts[0].lse);
  });
}

void move(HeadsTensor& t, int64_t batch, int64_t query, DType dtype) {
  const int64_t elements = batch * t.batch_stride + query * t.seq_stride;
  if (t.data) t.data = static_cast<char*>(t.data) + elements * static_cast<int64_t>(size_of(dtype));
}

// A list of parts travels as arguments and is written where the next kernel reads it. (A copy from host memory would
// not do: a captured graph would repeat it long after that memory is gone.)
__global__ void write_parts(MergePart* to, const __grid_constant__ PartList list, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) to[i] = list.at[i];
}
void write_list(MergePart* to, const std::vector<MergePart>& from, cudaStream_t stream) {
  for (size_t first = 0; first < from.size(); first += kPartsInArguments) {
    const size_t count = std::min<size_t>(kPartsInArguments, from.size() - first);
    PartList list;
    std::copy_n(from.begin() + static_cast<int64_t>(first), count, list.at);
    write_parts<<<1, 32, 0, stream>>>(to + first, list, static_cast<int>(count));
    XFORMERS_CUDA_CHECK(cudaGetLastError());
  }
}

size_t list_bytes(const MergeShape& shape, int lists) {
  return shape.num_parts > kPartsInArguments ? static_cast<size_t>(lists * shape.num_parts) * sizeof(MergePart) : 0;
}

struct Launch {
  void (*any)(const MergeArgs&, cudaStream_t);
  void (*alike)(const AlikeArgs&, cudaStream_t);
};

// One launch: rows [batch, + args.shape.batch) x [query, + args.shape.seqlen) of the call.
void run_piece(MergeArgs args, const MergePart* parts, const MergePart* grads, int64_t batch, int64_t query,
               const Stream& stream, const Launch& launch) {
  const MergeShape& s = args.shape;
  const auto to_stream = static_cast<cudaStream_t>(stream.stream);
  move(args.out, batch, query, s.out_dtype);
  move(args.lse, batch, query, s.lse_dtype);
  auto* memory = static_cast<MergePart*>(stream.workspace);
  const auto place = [&](const MergePart* from, const MergePart*& many, PartList& few) {
    if (!from) return;
    std::vector<MergePart> list(from, from + s.num_parts);
    for (MergePart& part : list) {
      move(part.out, batch, query, s.dtype);
      move(part.lse, batch, query, s.lse_dtype);
      args.aligned = args.aligned && is_aligned(part.out, s, size_of(s.dtype));
    }
    if (s.num_parts <= kPartsInArguments) {
      std::copy(list.begin(), list.end(), few.at);
      return;
    }
    write_list(memory, list, to_stream);
    many = memory;
    memory += s.num_parts;
  };
  args.aligned = is_aligned(args.out, s, size_of(s.out_dtype));
  args.by = {.queries = Divisor<uint32_t>(s.seqlen),
             .groups = Divisor<uint32_t>(s.num_groups),
             .heads = Divisor<uint32_t>(s.heads_per_group)};
  args.same_strides = s.num_parts <= kPartsInArguments && have_same_strides(parts, s.num_parts) &&
                      (!grads || have_same_strides(grads, s.num_parts));
  place(parts, args.parts, args.few_parts);
  place(grads, args.grads, args.few_grads);
  AlikeArgs alike;
  if (lie_alike(args, alike)) return launch.alike(alike, to_stream);
  launch.any(args, to_stream);
}

void run(const MergeArgs& given, const MergePart* parts, const MergePart* grads, const Stream& stream,
         const Launch& launch) {
  MergeArgs args = given;
  const MergeShape& s = given.shape;
  const int64_t heads = s.num_groups * s.heads_per_group;
  if (s.num_rows() == 0 || s.num_parts == 0) return;
  if (heads > kMostRows || s.head_dim > kMostRows) {
    throw Error("merge_attentions: 2^30 heads or head_dim or more, expected fewer.  Fix: cut the tensors");
  }
  const auto vectors = static_cast<unsigned>((s.head_dim * static_cast<int64_t>(size_of(s.dtype)) + 15) / 16);
  args.log_lanes = std::min(static_cast<int>(std::bit_width(vectors - 1)), 5);
  const int64_t queries = std::min(s.seqlen, kMostRows / heads),
                batches = std::max<int64_t>(1, std::min(s.batch, kMostRows / heads / queries));
  for (int64_t batch = 0; batch < s.batch; batch += batches) {
    for (int64_t query = 0; query < s.seqlen; query += queries) {
      args.shape.batch = std::min(batches, s.batch - batch);
      args.shape.seqlen = std::min(queries, s.seqlen - query);
      run_piece(args, parts, grads, batch, query, stream, launch);
    }
  }
}

}  // namespace

size_t merge_workspace(const MergeFwdParams& params) { return list_bytes(params.shape, 1); }
size_t merge_workspace(const MergeBwdParams& params) { return list_bytes(params.shape, 2); }

void merge_forward(const MergeFwdParams& p, const Stream& stream) {
  check(p);
  MergeArgs args;
  args.shape = p.shape, args.out = p.out, args.lse = p.lse;
  run(args, p.parts, nullptr, stream, {launch_merge_forward, launch_alike_forward});
}

void merge_backward(const MergeBwdParams& p, const Stream& stream) {
  check(p);
  MergeArgs args;
  args.shape = p.shape, args.out = p.dout, args.lse = p.dlse;
  run(args, p.parts, p.grads, stream, {launch_merge_backward, launch_alike_backward});
}

}  // namespace xformers::cuda
