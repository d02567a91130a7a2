# The memory-bound CUDA kernels around attention. Included by CMakeLists.txt.
target_sources(
  xformers_kernels_cuda PRIVATE
  base/column_sums.cu
  bias_act_dropout/bias_act_dropout.cu
  indexing/add.cu
  indexing/add_backward.cu
  indexing/gather.cu
  indexing/places.cu
  indexing/scatter.cu
  norm/norm_backward.cu
  norm/norm_forward.cu
  product/cublaslt.cpp
  product/digest.cu
  product/product.cpp
  rope/rope_padded.cu
  rope/rotary.cu
  softmax/softmax_backward.cu
  softmax/softmax_forward.cu
  swiglu/gate.cu)
