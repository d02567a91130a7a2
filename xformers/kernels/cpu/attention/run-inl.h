// One whole call for one kernel: memory, tasks, merges.
#pragma once

#include "xformers/kernels/cpu/attention/bwd-inl.h"
#include "xformers/kernels/cpu/attention/decode-inl.h"
#include "xformers/kernels/cpu/attention/merge.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/cpu/base/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// Kernel: Forward<Gemm> or Decode<T>.
template <class Kernel>
void run_forward(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  using C = typename Kernel::Compute;
  const size_t worker_bytes = Kernel(params, {}).lay_out(nullptr);
  const size_t partial_bytes = plan.partial_rows * (params.shape.head_dim_v + 2) * sizeof(C);
  const ThreadScratch scratch(worker_bytes * threads.num_threads + partial_bytes);
  C* const partial_out = reinterpret_cast<C*>(scratch.data() + worker_bytes * threads.num_threads);
  C* const row_max = partial_out + plan.partial_rows * params.shape.head_dim_v;
  const ForwardPartials<C> partials{partial_out, row_max, row_max + plan.partial_rows, score_factor<C>(params)};

  for_each_task(threads, static_cast<int64_t>(plan.tasks.size()), [&](int64_t task, int worker) {
    Kernel kernel(params, partials);
    kernel.lay_out(scratch.data() + worker * worker_bytes);
    Kernel::begin();
    kernel.run(plan.tasks[task]);
    Kernel::end();
  });
  for_each_task(threads, static_cast<int64_t>(plan.merges.size()),
                [&](int64_t index, int) { merge_splits(params, plan.merges[index], partials); });
}

template <class Gemm>
void run_backward(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads) {
  using C = typename Gemm::Compute;
  using Kernel = Backward<Gemm>;
  const size_t worker_bytes = Kernel(params, nullptr).lay_out(nullptr, plan.longest_own);
  const ThreadScratch scratch(worker_bytes * threads.num_threads + plan.partial_size * sizeof(C));
  C* const shares = reinterpret_cast<C*>(scratch.data() + worker_bytes * threads.num_threads);

  for_each_task(threads, static_cast<int64_t>(plan.tasks.size()), [&](int64_t task, int worker) {
    Kernel kernel(params, shares);
    kernel.lay_out(scratch.data() + worker * worker_bytes, plan.longest_own);
    Gemm::begin();
    kernel.run(plan.tasks[task]);
    Gemm::end();
  });
  for_each_task(threads, static_cast<int64_t>(plan.merges.size()), [&](int64_t index, int worker) {
    Kernel kernel(params, shares);
    kernel.lay_out(scratch.data() + worker * worker_bytes, plan.longest_own);
    kernel.merge(plan.merges[index]);
  });
}

// Calls run<Gemm> for the element type; GemmFor<T>::type says which Gemm an instruction set uses.
template <template <class> class GemmFor>
void forward_any(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  switch (params.shape.dtype) {
    case DType::kFloat32: return run_forward<Forward<typename GemmFor<float>::type>>(params, plan, threads);
    case DType::kFloat64: return run_forward<Forward<typename GemmFor<double>::type>>(params, plan, threads);
    case DType::kBFloat16: return run_forward<Forward<typename GemmFor<BFloat16>::type>>(params, plan, threads);
    case DType::kFloat16: return run_forward<Forward<typename GemmFor<Float16>::type>>(params, plan, threads);
  }
}

template <template <class> class GemmFor>
void backward_any(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads) {
  switch (params.shape.dtype) {
    case DType::kFloat32: return run_backward<typename GemmFor<float>::type>(params, plan, threads);
    case DType::kFloat64: return run_backward<typename GemmFor<double>::type>(params, plan, threads);
    case DType::kBFloat16: return run_backward<typename GemmFor<BFloat16>::type>(params, plan, threads);
    case DType::kFloat16: return run_backward<typename GemmFor<Float16>::type>(params, plan, threads);
  }
}

inline void decode_any(const AttentionFwdParams& params, const ForwardPlan& plan, const Threads& threads) {
  switch (params.shape.dtype) {
    case DType::kFloat32: return run_forward<Decode<float>>(params, plan, threads);
    case DType::kFloat64: return run_forward<Decode<double>>(params, plan, threads);
    case DType::kBFloat16: return run_forward<Decode<BFloat16>>(params, plan, threads);
    case DType::kFloat16: return run_forward<Decode<Float16>>(params, plan, threads);
  }
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
