// One whole call for one kernel: memory, tasks, merges.
#pragma once

#include "xformers/kernels/cpu/attention/bwd-inl.h"
#include "xformers/kernels/cpu/attention/decode-inl.h"
#include "xformers/kernels/cpu/attention/merge.h"
#include "xformers/kernels/cpu/base/parallel_for.h"
#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/base/subnormals.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {

// ALiBi gives distant keys weights of all sizes down to 0; those below the smallest normal number may be 0 as well.
inline bool has_tiny_weights(const AttentionProblem& problem) { return problem.mods.alibi_slopes.data != nullptr; }

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
    {
      const SubnormalsAreZero zero(has_tiny_weights(params));
      kernel.run(plan.tasks[task]);
    }
    Kernel::end();
  });
  for_each_task(threads, static_cast<int64_t>(plan.merges.size()),
                [&](int64_t index, int) { merge_splits(params, plan.merges[index], partials); });
}

// dslopes of the tasks of a head, in order.
template <class C>
void sum_dslopes(const AttentionBwdParams& params, const BackwardPlan& plan, const double* of_task) {
  const auto sum = [&](const BackwardTask& task) -> C& {
    return static_cast<C*>(params.dslopes.data)[params.dslopes.offset(task.sequence, task.group, task.head)];
  };
  for (const BackwardTask& task : plan.tasks) sum(task) = 0;
  for (size_t i = 0; i < plan.tasks.size(); ++i) sum(plan.tasks[i]) += static_cast<C>(of_task[i]);
}

template <class Gemm>
void run_backward(const AttentionBwdParams& params, const BackwardPlan& plan, const Threads& threads) {
  using C = typename Gemm::Compute;
  using Kernel = Backward<Gemm>;
  const size_t worker_bytes = Kernel(params, nullptr).lay_out(nullptr, plan.longest_own);
  const int64_t num_tasks = static_cast<int64_t>(plan.tasks.size());
  const size_t shares_bytes = plan.partial_size * sizeof(C), dslope_bytes = params.dslopes.data ? num_tasks * 8 : 0;
  const ThreadScratch scratch(worker_bytes * threads.num_threads + dslope_bytes + shares_bytes);
  double* const dslopes = reinterpret_cast<double*>(scratch.data() + worker_bytes * threads.num_threads);
  C* const shares = reinterpret_cast<C*>(scratch.data() + worker_bytes * threads.num_threads + dslope_bytes);

  const auto run = [&](int64_t task, int worker) {
    Kernel kernel(params, shares);
    kernel.lay_out(scratch.data() + worker * worker_bytes, plan.longest_own);
    Gemm::begin();
    const double dslope = [&] {
      const SubnormalsAreZero zero(has_tiny_weights(params));
      return kernel.run(plan.tasks[task]);
    }();
    Gemm::end();
    if (params.dslopes.data) dslopes[task] = dslope;
  };
  if (plan.chains.empty()) {
    for_each_task(threads, num_tasks, run);
  } else {
    for_each_task(threads, static_cast<int64_t>(plan.chains.size()) - 1, [&](int64_t chain, int worker) {
      for (int64_t task = plan.chains[chain]; task < plan.chains[chain + 1]; ++task) run(task, worker);
    });
  }
  if (params.dslopes.data) sum_dslopes<C>(params, plan, dslopes);
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
