# Units that read LibTorch's headers spend most of their time there. xformers_torch_units(<target>) gives the target's units
# these headers precompiled, once for all of them.
# xformers_join_units(<target>) compiles the files of one folder (of nn: all), up to ten, as one unit: what the headers ask every unit to
# instantiate, which is half of the time, happens once.
#
# A file still includes what it uses and has its own names: -DXFORMERS_TORCH_UNITS=alone compiles each by itself and without
# precompiled headers.
include_guard(GLOBAL)
set(XFORMERS_TORCH_UNITS joined CACHE STRING "How files that read LibTorch's headers are compiled: joined, or alone")

set(_xformers_torch_headers <ATen/ATen.h> <ATen/Parallel.h> <ATen/autocast_mode.h> <torch/library.h>
    <torch/csrc/autograd/autograd_not_implemented_fallback.h> <torch/csrc/autograd/custom_function.h>)

function(xformers_torch_units target)
  if(XFORMERS_TORCH_UNITS STREQUAL "alone")
    return()
  endif()
  _xformers_with_torch_headers(${target})
  if(NOT TARGET xformers_torch_headers)
    file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/torch_headers.cpp" CONTENT "// Its target makes the precompiled headers.\n")
    add_library(xformers_torch_headers OBJECT "${PROJECT_BINARY_DIR}/torch_headers.cpp")
    target_link_libraries(xformers_torch_headers PRIVATE xformers_attention_kernels xformers_torch::cpu)
    _xformers_with_torch_headers(xformers_torch_headers)
    target_precompile_headers(xformers_torch_headers PRIVATE ${_xformers_torch_headers})
  endif()
  target_precompile_headers(${target} REUSE_FROM xformers_torch_headers)
endfunction()

# The file fits units with the same code options and the same definitions alone: programs are compiled like the library.
function(_xformers_with_torch_headers target)
  set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF DEFINE_SYMBOL "")
  target_compile_options(${target} PRIVATE -fPIC)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -fpch-preprocess)  # for ccache
  endif()
endfunction()

function(xformers_join_units target)
  if(XFORMERS_TORCH_UNITS STREQUAL "alone")
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  get_target_property(base ${target} SOURCE_DIR)
  foreach(source IN LISTS sources)
    cmake_path(ABSOLUTE_PATH source BASE_DIRECTORY "${base}")
    cmake_path(GET source PARENT_PATH folder)
    cmake_path(RELATIVE_PATH folder BASE_DIRECTORY "${PROJECT_SOURCE_DIR}/xformers")
    string(REGEX REPLACE "^nn/.*" "nn" folder "${folder}")
    string(MAKE_C_IDENTIFIER "${folder}" folder)
    math(EXPR part "0${count_${folder}} / 10")
    math(EXPR count_${folder} "0${count_${folder}} + 1")
    set_source_files_properties("${source}" TARGET_DIRECTORY ${target} PROPERTIES UNITY_GROUP ${folder}_${part})
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

# For what calls operators and kernels, and computes nothing itself: two thirds of the time.
function(xformers_compile_quickly target)
  target_compile_options(${target} PRIVATE "$<$<CONFIG:Release,RelWithDebInfo>:-O1>")
endfunction()
