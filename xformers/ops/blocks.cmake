# The operators around attention; included by CMakeLists.txt.
target_sources(xformers PRIVATE
  indexing/indexing.cpp
  indexing/indexing_autograd.cpp
  indexing/indexing_cpu.cpp
  indexing/indexing_meta.cpp
  norm/norm.cpp
  norm/norm_autograd.cpp
  norm/norm_cpu.cpp
  norm/norm_meta.cpp
  rope/rope.cpp
  rope/rope_kernels.cpp
  swiglu/swiglu.cpp
  swiglu/swiglu_autograd.cpp
  swiglu/swiglu_cpu.cpp
  swiglu/swiglu_layer.cpp
  tiled_matmul/tiled_matmul.cpp)

if(XFORMERS_CUDA)
  target_sources(xformers PRIVATE)
endif()
