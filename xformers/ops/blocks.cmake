# The operators around attention; included by CMakeLists.txt.
target_sources(xformers PRIVATE
  bias_act_dropout/bias_act_dropout.cpp
  bias_act_dropout/bias_act_dropout_autograd.cpp
  bias_act_dropout/bias_act_dropout_cpu.cpp
  bias_act_dropout/bias_act_dropout_params.cpp
  indexing/indexing.cpp
  indexing/indexing_autograd.cpp
  indexing/indexing_cpu.cpp
  indexing/indexing_meta.cpp
  norm/norm.cpp
  norm/norm_autograd.cpp
  norm/norm_cpu.cpp
  norm/norm_meta.cpp
  product/product.cpp
  rope/rope.cpp
  rope/rope_kernels.cpp
  softmax/softmax.cpp
  softmax/softmax_autograd.cpp
  softmax/softmax_cpu.cpp
  swiglu/swiglu.cpp
  swiglu/swiglu_autograd.cpp
  swiglu/swiglu_cpu.cpp
  swiglu/swiglu_layer.cpp
  tiled_matmul/tiled_matmul.cpp)

if(XFORMERS_CUDA)
  target_sources(xformers PRIVATE
    bias_act_dropout/bias_act_dropout_cuda.cpp
    indexing/indexing_cuda.cpp
    norm/norm_cuda.cpp
    product/product_cuda.cpp
    rope/rope_cuda.cpp
    softmax/softmax_cuda.cpp
    swiglu/swiglu_cuda.cpp)
endif()
