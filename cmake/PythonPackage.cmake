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

set(XFORMERS_PYTHON_LIBRARIES xformers_kernels xformers_attention_kernels xformers_profiler)
set(package "${PROJECT_BINARY_DIR}/python/xformers")
foreach(kind IN ITEMS PYTHON OPERATOR)
  list(TRANSFORM XFORMERS_${kind}_LIBRARIES REPLACE "(.+)" "$<TARGET_FILE:\\1>" OUTPUT_VARIABLE ${kind}_files)
  list(JOIN ${kind}_files "," ${kind}_files)
endforeach()
add_custom_target(
  python_package ALL
  COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}/python/xformers" "-DFOLDER=${package}"
          "-DFILES=${PYTHON_files},${PROJECT_BINARY_DIR}/_build_info.json"
          -P "${PROJECT_SOURCE_DIR}/cmake/link_python_package.cmake"
  COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_BINARY_DIR}/torch_library" "-DFOLDER=${package}/${XFORMERS_TORCH_FOLDER}"
          "-DFILES=${OPERATOR_files}" -P "${PROJECT_SOURCE_DIR}/cmake/link_python_package.cmake"
  DEPENDS ${XFORMERS_PYTHON_LIBRARIES} ${XFORMERS_OPERATOR_LIBRARIES}
  COMMENT "Linking the Python package into ${PROJECT_BINARY_DIR}/python"
  VERBATIM)

install(TARGETS ${XFORMERS_PYTHON_LIBRARIES} LIBRARY DESTINATION xformers COMPONENT python EXCLUDE_FROM_ALL)
install(FILES "${PROJECT_BINARY_DIR}/_build_info.json" DESTINATION xformers COMPONENT python EXCLUDE_FROM_ALL)
