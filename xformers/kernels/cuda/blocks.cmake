# The memory-bound CUDA kernels around attention. Included by CMakeLists.txt.
target_sources(xformers_kernels_cuda PRIVATE)
