# Which instruction sets the CPU kernels are compiled for. Sets XFORMERS_BUILT_ISAS, in rising order, and writes
# cpu/base/built_isas.h.
set(XFORMERS_CPU_ISAS all CACHE STRING "Instruction sets of the CPU kernels: all, host (what the building machine \
chooses from), or a list of portable;avx2;avx512;avx512_bf16;avx512_fp16;amx")

set(XFORMERS_ALL_ISAS portable)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  list(APPEND XFORMERS_ALL_ISAS avx2 avx512 avx512_bf16 avx512_fp16 amx)
endif()

# The names that cpu_features gives on this machine, from the highest of the sets that take every call upwards.
function(_xformers_host_isas result)
  if(NOT DEFINED XFORMERS_HOST_ISAS)
    try_run(ran compiled SOURCES "${CMAKE_CURRENT_SOURCE_DIR}/cpu/base/host_isas.cpp"
            "${CMAKE_CURRENT_SOURCE_DIR}/cpu/base/cpu_features.cpp" CXX_STANDARD 20
            CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}"
            COMPILE_OUTPUT_VARIABLE errors RUN_OUTPUT_VARIABLE names)
    if(NOT compiled OR NOT ran EQUAL 0)
      message(FATAL_ERROR "XFORMERS_CPU_ISAS=host: this machine could not be asked.  Fix: name the sets.\n${errors}")
    endif()
    set(XFORMERS_HOST_ISAS "${names}" CACHE INTERNAL "What this machine's processor has")
  endif()
  set(names ${XFORMERS_HOST_ISAS})
  foreach(lower IN ITEMS portable avx2)
    if((lower STREQUAL portable AND avx2 IN_LIST names) OR avx512 IN_LIST names)
      list(REMOVE_ITEM names ${lower})
    endif()
  endforeach()
  set(${result} "${names}" PARENT_SCOPE)
endfunction()

set(wanted ${XFORMERS_CPU_ISAS})
if(wanted STREQUAL "all")
  set(wanted ${XFORMERS_ALL_ISAS})
elseif(wanted STREQUAL "host")
  _xformers_host_isas(wanted)
endif()
foreach(isa IN LISTS wanted)
  if(NOT isa IN_LIST XFORMERS_ALL_ISAS)
    message(FATAL_ERROR "XFORMERS_CPU_ISAS has '${isa}', expected all, host or some of: ${XFORMERS_ALL_ISAS}")
  endif()
endforeach()
if(NOT wanted MATCHES "(^|;)(portable|avx2|avx512)(;|$)")
  message(FATAL_ERROR "XFORMERS_CPU_ISAS is '${wanted}', expected portable, avx2 or avx512 among them: "
                      "the others don't take every dtype")
endif()

set(XFORMERS_BUILT_ISAS)
set(lines "// Made by CMake: the instruction sets of this build (XFORMERS_CPU_ISAS).\n#pragma once\n")
foreach(isa IN ITEMS portable avx2 avx512 avx512_bf16 avx512_fp16 amx)
  if(isa IN_LIST wanted)
    list(APPEND XFORMERS_BUILT_ISAS ${isa})
    string(APPEND lines "#define XFORMERS_BUILT_${isa}(fn) fn\n")
  else()
    string(APPEND lines "#define XFORMERS_BUILT_${isa}(fn) nullptr\n")
  endif()
endforeach()
list(TRANSFORM XFORMERS_BUILT_ISAS REPLACE "(.+)" "\"\\1\"" OUTPUT_VARIABLE names)
list(JOIN names ", " names)
string(APPEND lines "#define XFORMERS_BUILT_ISAS ${names}\n")
file(CONFIGURE OUTPUT "${CMAKE_CURRENT_BINARY_DIR}/generated/xformers/kernels/cpu/base/built_isas.h" CONTENT "${lines}" @ONLY)
set_property(GLOBAL PROPERTY XFORMERS_CPU_ISAS ${XFORMERS_BUILT_ISAS})
