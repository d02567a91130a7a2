# The Python package in the build tree: <build>/python/xformers, links to the sources and to the fresh libraries, plus
# the record of this build. PYTHONPATH=<build>/python uses it; the wheel carries the same files.
get_property(isas GLOBAL PROPERTY XFORMERS_CPU_ISAS)
list(TRANSFORM isas REPLACE "(.+)" "\"\\1\"")
list(JOIN isas ", " XFORMERS_CPU_ISA_JSON)
configure_file(cmake/build_info.json.in "${PROJECT_BINARY_DIR}/_build_info.json" @ONLY)

add_custom_target(
  python_package ALL
  COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${PROJECT_SOURCE_DIR}/python/xformers"
          "-DPACKAGE=${PROJECT_BINARY_DIR}/python/xformers" "-DBUILD_INFO=${PROJECT_BINARY_DIR}/_build_info.json"
          "-DLIBRARIES=$<TARGET_FILE:xformers>,$<TARGET_FILE:xformers_kernels>"
          -P "${PROJECT_SOURCE_DIR}/cmake/link_python_package.cmake"
  DEPENDS xformers xformers_kernels
  COMMENT "Linking the Python package into ${PROJECT_BINARY_DIR}/python"
  VERBATIM)
