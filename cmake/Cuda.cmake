# The CUDA side of the kernels: compiler, architectures, CUTLASS's headers, and units written from instance lists.
#
#   XFORMERS_CUDA         ON builds the CUDA kernels; needs nvcc 13 and CUTLASS's headers (requirements-cuda.txt)
#   XFORMERS_CUDA_ARCHS   architectures, as in CMAKE_CUDA_ARCHITECTURES
#   XFORMERS_CUDA_DTYPES, XFORMERS_HEAD_DIMS   the tensor-core kernels to build; fewer are faster to compile
#   XFORMERS_CUDA_ELSEWHERE  ON leaves the kernels out of libxformers_attention_kernels: scripts/gpu/pack.sh and build.sh compile
#                         them on the machine that has the GPU
#   XFORMERS_CUTLASS_DIR  CUTLASS's include folder; empty: that of the Python package nvidia-cutlass
#
# nvcc is taken from CMAKE_CUDA_COMPILER, PATH, CUDA_HOME, /usr/local/cuda, or the Python package nvidia-cuda-nvcc.
include_guard(GLOBAL)

# 90a: Hopper's own code. 80 also leaves its PTX in the library, which newer GPUs compile at load.
set(XFORMERS_CUDA_ARCHS "80;90a-real" CACHE STRING "CUDA architectures")
set(XFORMERS_CUDA_DTYPES "bf16;fp16;fp32" CACHE STRING "Dtypes of the tensor-core kernels")
set(XFORMERS_HEAD_DIMS "32;64;96;128;192;256" CACHE STRING "Padded head dims of the tensor-core kernels")
option(XFORMERS_CUDA_ELSEWHERE "The CUDA kernels are compiled and linked elsewhere" OFF)
set(XFORMERS_CUTLASS_DIR "" CACHE PATH "CUTLASS's include folder; empty: ask Python for nvidia-cutlass")

# The folder of `package` in the first Python that has it, of those that would be asked for torch.
function(_xformers_python_folder package result)
  _xformers_pythons(pythons)
  set(${result} "" PARENT_SCOPE)
  foreach(python IN LISTS pythons)
    execute_process(
      COMMAND "${python}" -c "import importlib.util as u; s = u.find_spec('${package}'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(folder)
      set(${result} "${folder}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

if(NOT CMAKE_CUDA_COMPILER)
  _xformers_python_folder(nvidia _nvidia)
  find_program(XFORMERS_NVCC nvcc HINTS "$ENV{CUDA_HOME}/bin" PATHS /usr/local/cuda/bin "${_nvidia}/cu13/bin"
               DOC "CUDA compiler")
  mark_as_advanced(XFORMERS_NVCC)
  if(NOT XFORMERS_NVCC)
    message(FATAL_ERROR "nvcc was not found, expected 13.0 or later.  "
                        "Fix: install the CUDA toolkit or pip install --no-deps -r requirements-nvcc.txt, or pass "
                        "-DCMAKE_CUDA_COMPILER=<nvcc>, or -DXFORMERS_CUDA=OFF")
  endif()
  set(CMAKE_CUDA_COMPILER "${XFORMERS_NVCC}")
endif()
set(CMAKE_CUDA_ARCHITECTURES "${XFORMERS_CUDA_ARCHS}")
if(XFORMERS_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${XFORMERS_CCACHE}")
endif()
enable_language(CUDA)
find_package(CUDAToolkit 13 REQUIRED)
set_property(GLOBAL PROPERTY XFORMERS_NVCC_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")  # for the record of the build
set_property(GLOBAL PROPERTY XFORMERS_CUDA_ARCHS "${CMAKE_CUDA_ARCHITECTURES}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

if(NOT XFORMERS_CUTLASS_DIR)
  _xformers_python_folder(cutlass_library _cutlass)
  if(_cutlass)
    set(XFORMERS_CUTLASS_DIR "${_cutlass}/source/include" CACHE PATH "" FORCE)
  endif()
endif()
if(NOT EXISTS "${XFORMERS_CUTLASS_DIR}/cute/arch/mma_sm80.hpp")
  message(FATAL_ERROR "CUTLASS's headers were not found (looked in '${XFORMERS_CUTLASS_DIR}').  "
                      "Fix: pip install --no-deps -r requirements-cuda.txt, or pass -DXFORMERS_CUTLASS_DIR=<include>")
endif()

# Ninja runs as many units of kernels at once as the memory holds, at 2 GiB for each.
cmake_host_system_information(RESULT _memory QUERY TOTAL_PHYSICAL_MEMORY)  # MiB
math(EXPR _jobs "${_memory} / 2048")
if(_jobs LESS 1)
  set(_jobs 1)
endif()
set_property(GLOBAL APPEND PROPERTY JOB_POOLS "xformers_nvcc=${_jobs}")

# Those of the architectures in ARGN ("90a-real") whose GPUs XFORMERS_CUDA_ARCHS asks for. Code of an architecture with a
# letter runs on the GPUs of its number alone, so either spelling asks for it.
function(xformers_cuda_archs_wanted result)
  set(wanted ${CMAKE_CUDA_ARCHITECTURES})
  if(wanted STREQUAL "native")
    set(wanted ${CMAKE_CUDA_ARCHITECTURES_NATIVE})
  endif()
  set(archs)
  foreach(arch IN LISTS ARGN)
    string(REGEX MATCH "^[0-9]+" number "${arch}")
    if(wanted MATCHES "(^|;)(${number}[a-z]?(-real|-virtual)?|all|all-major)(;|$)")
      list(APPEND archs ${arch})
    endif()
  endforeach()
  set(${result} ${archs} PARENT_SCOPE)
endfunction()

# One unit per row of an instance list that is to be built: XFORMERS_INSTANCE(type), which always is, or
# XFORMERS_INSTANCE(type, head_dim, head_dim_v), where both dims and the type are wanted.
# The rows that were taken go to cuda_instances/<family>.inc, their units to `result`; without a list there are none.
function(xformers_cuda_instances result family list launch)
  set(units)
  set(rows)
  if(list)
    file(STRINGS "${list}" rows REGEX "^XFORMERS_INSTANCE")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${list}")
  endif()
  set(folder "${PROJECT_BINARY_DIR}/cuda_instances")
  set(taken "")
  foreach(row IN LISTS rows)
    string(REGEX MATCHALL "[a-z0-9]+" words "${row}")
    list(LENGTH words count)
    list(GET words 0 dtype)
    if(count GREATER 1)
      list(GET words 1 head_dim)
      list(GET words 2 head_dim_v)
      if(NOT (dtype IN_LIST XFORMERS_CUDA_DTYPES AND head_dim IN_LIST XFORMERS_HEAD_DIMS AND
              head_dim_v IN_LIST XFORMERS_HEAD_DIMS))
        continue()
      endif()
    endif()
    list(JOIN words "_" name)
    set(source "${folder}/${family}_${name}.cu")
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"${launch}\"\nusing namespace xformers::cuda;\n${row}\n" @ONLY)
    list(APPEND units "${source}")
    string(APPEND taken "${row}\n")
  endforeach()
  file(CONFIGURE OUTPUT "${folder}/${family}.inc" CONTENT "${taken}" @ONLY)
  set(${result} ${units} PARENT_SCOPE)
endfunction()
