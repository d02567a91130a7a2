// What every device's entry points refuse before they look at memory: check(params) of each family throws
// xformers::Error. One rule for both devices; what a device can't do is told beside it.
#pragma once

#include "xformers/kernels/params/attention_check.h"
#include "xformers/kernels/params/bias_act_dropout.h"
#include "xformers/kernels/params/blocksparse.h"
#include "xformers/kernels/params/csr.h"
#include "xformers/kernels/params/gate.h"
#include "xformers/kernels/params/indexing.h"
#include "xformers/kernels/params/linear_attention.h"
#include "xformers/kernels/params/merge.h"
#include "xformers/kernels/params/norm.h"
#include "xformers/kernels/params/product.h"
#include "xformers/kernels/params/rope.h"
#include "xformers/kernels/params/softmax.h"
#include "xformers/kernels/params/sparse24.h"

namespace xformers {

// What a device takes weights, biases and factors in, beside the type that rows are computed in.
enum class WeightTypes { kCompute, kAlsoOfRows, kAlso16Bit };

void check(const NormFwdParams& params, WeightTypes taken);
void check(const NormBwdParams& params, WeightTypes taken);
void check(const BiasActDropoutFwdParams& params, WeightTypes taken);
void check(const BiasActDropoutBwdParams& params, WeightTypes taken);
void check(const ScaledIndexAddParams& params, WeightTypes taken);
void check(const ScaledIndexAddBwdParams& params, WeightTypes taken);
void check(const IndexSelectCatParams& params);
void check(const SoftmaxFwdParams& params);
void check(const SoftmaxBwdParams& params);
void check(const LinearAttentionFwdParams& params);
void check(const LinearAttentionBwdParams& params);
void check(const GateFwdParams& params);
void check(const GateBwdParams& params);
void check(const MergeFwdParams& params);
void check(const MergeBwdParams& params);
void check(const RopePaddedParams& params);
void check(const RotaryParams& params);
void check(const ProductParams& params);
void check(const CsrSddmmParams& params);
void check(const CsrSpmmParams& params);
void check(const CsrSoftmaxFwdParams& params);
void check(const CsrSoftmaxBwdParams& params);
void check(const CsrTransposeParams& params);
void check(const Sparse24PackParams& params);
void check(const Sparse24DenseParams& params);
void check(const Sparse24ActivationBwdParams& params);
void check(const Sparse24UnpackParams& params);
void check(const Sparse24ProductParams& params);
void check(const BlockSddParams& params);
void check(const BlockDsdParams& params);
void check(const BlockSoftmaxFwdParams& params);
void check(const BlockSoftmaxBwdParams& params);

}  // namespace xformers
