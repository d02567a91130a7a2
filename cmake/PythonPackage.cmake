# The Python package in the build tree: <build>/python/xformers, links to the sources and to the fresh libraries, plus
# the record of this build. PYTHONPATH=<build>/python uses it; the wheel carries the same files.
get_property(isas GLOBAL PROPERTY XFORMERS_CPU_ISAS)
list(TRANSFORM isas REPLACE "(.+)" "\"\\1\"")
list(JOIN isas ", " XFORMERS_CPU_ISA_JSON)

# JSON: "text", or null where it is empty.
function(_xformers_in_json result text)
  if(text STREQUAL "")
    set(${result} "null" PARENT_SCOPE)
  else()
    string(REGEX REPLACE "([\\\\\"])" "\\\\\\1" text "${text}")
    set(${result} "\"${text}\"" PARENT_SCOPE)
  endif()
endfunction()

# A library runs under the torch that it was built for and, where that is among the accepted ones, under older ones of them.
set(XFORMERS_TORCH_RUNS_UNDER_JSON "\"${XFORMERS_TORCH_SERIES}\"")
list(GET XFORMERS_TORCH_ACCEPTED 0 oldest)
list(GET XFORMERS_TORCH_ACCEPTED 1 below)
if(XFORMERS_TORCH_SERIES VERSION_LESS below)
  string(REGEX MATCH "^([0-9]+)\\.([0-9]+)$" _ "${oldest}")
  set(major ${CMAKE_MATCH_1})
  set(minor ${CMAKE_MATCH_2})
  set(runs_under)
  while("${major}.${minor}" VERSION_LESS_EQUAL XFORMERS_TORCH_SERIES)
    list(APPEND runs_under "\"${major}.${minor}\"")
    math(EXPR minor "${minor} + 1")
  endwhile()
  list(JOIN runs_under ", " XFORMERS_TORCH_RUNS_UNDER_JSON)
endif()

get_property(nvcc GLOBAL PROPERTY XFORMERS_NVCC_VERSION)
get_property(archs GLOBAL PROPERTY XFORMERS_CUDA_ARCHS)
string(REGEX MATCH "^[0-9]+\\.[0-9]+" cuda "${nvcc}")
list(JOIN archs " " archs)
_xformers_in_json(XFORMERS_CUDA_JSON "${cuda}")
_xformers_in_json(XFORMERS_NVCC_JSON "${nvcc}")
_xformers_in_json(XFORMERS_CUDA_ARCHS_JSON "${archs}")
set(env)
foreach(name IN ITEMS TORCH_CUDA_ARCH_LIST PYTORCH_ROCM_ARCH XFORMERS_BUILD_TYPE XFORMERS_ENABLE_DEBUG_ASSERTIONS NVCC_FLAGS
                      XFORMERS_PACKAGE_FROM)
  _xformers_in_json(value "$ENV{${name}}")
  list(APPEND env "\"${name}\": ${value}")
endforeach()
list(JOIN env ", " XFORMERS_ENV_JSON)
configure_file(cmake/build_info.json.in "${PROJECT_BINARY_DIR}/_build_info.json" @ONLY)

set(XFORMERS_PYTHON_LIBRARIES xformers xformers_ops xformers_attention xformers_kernels xformers_attention_kernels xformers_profiler)
list(TRANSFORM XFORMERS_PYTHON_LIBRARIES REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE files)
list(JOIN files "," files)
add_custom_target(
  python_package ALL
  COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}/python/xformers"
          "-DPACKAGE=${PROJECT_BINARY_DIR}/python/xformers" "-DBUILD_INFO=${PROJECT_BINARY_DIR}/_build_info.json"
          "-DLIBRARIES=${files}"
          -P "${PROJECT_SOURCE_DIR}/cmake/link_python_package.cmake"
  DEPENDS ${XFORMERS_PYTHON_LIBRARIES}
  COMMENT "Linking the Python package into ${PROJECT_BINARY_DIR}/python"
  VERBATIM)
