# The part of the Python package that depends on torch: xformers/torch<series>/, the operator libraries and the record of the
# torch that they were built with. A package holds one such folder per series, over one set of kernels.
string(REPLACE "." "" XFORMERS_TORCH_FOLDER "torch${XFORMERS_TORCH_SERIES}")
set(XFORMERS_OPERATOR_LIBRARIES xformers xformers_ops xformers_attention)

# A library runs under the series that it was built for; 2.11's also under 2.10, which has every symbol and layout that it uses.
set(XFORMERS_TORCH_RUNS_UNDER_JSON "\"${XFORMERS_TORCH_SERIES}\"")
if(XFORMERS_TORCH_SERIES STREQUAL "2.11")
  set(XFORMERS_TORCH_RUNS_UNDER_JSON "\"2.10\", \"2.11\"")
endif()
configure_file(cmake/torch_library.json.in "${PROJECT_BINARY_DIR}/torch_library/_torch_library.json" @ONLY)

# What decides whether kernels and operators fit each other, for the folder of a cache.
file(GLOB_RECURSE _sources RELATIVE "${PROJECT_SOURCE_DIR}" xformers/ops/*.h xformers/ops/*.cpp xformers/nn/*.h xformers/nn/*.cpp
     xformers/kernels/*.h)
list(SORT _sources)
set(_digests)
foreach(_source IN LISTS _sources)
  file(SHA256 "${PROJECT_SOURCE_DIR}/${_source}" _digest)
  string(APPEND _digests "${_source} ${_digest}\n")
endforeach()
string(SHA256 XFORMERS_SOURCES_DIGEST "${_digests}")

install(TARGETS ${XFORMERS_OPERATOR_LIBRARIES} LIBRARY DESTINATION "xformers/${XFORMERS_TORCH_FOLDER}" COMPONENT torch_library
        EXCLUDE_FROM_ALL)
install(FILES "${PROJECT_BINARY_DIR}/torch_library/_torch_library.json" DESTINATION "xformers/${XFORMERS_TORCH_FOLDER}"
        COMPONENT torch_library EXCLUDE_FROM_ALL)
