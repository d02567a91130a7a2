# -DXFORMERS_KERNELS_FROM=<folder of libxformers_kernels.so>: the operators are built over kernels that are there already, for
# another torch for instance. Targets of the same names as xformers/kernels makes; headers come from this tree.
set(_record "${XFORMERS_KERNELS_FROM}/_build_info.json")
foreach(part IN ITEMS libxformers_attention_kernels.so libxformers_kernels.so _build_info.json)
  if(NOT EXISTS "${XFORMERS_KERNELS_FROM}/${part}")
    message(FATAL_ERROR "XFORMERS_KERNELS_FROM is ${XFORMERS_KERNELS_FROM}, which has no ${part}; expected the folder of an "
                        "installed package xformers.  Fix: pass that folder")
  endif()
endforeach()
file(READ "${_record}" _record)
string(JSON _made_by GET "${_record}" version)
string(JSON _cuda GET "${_record}" cuda)
if(NOT _made_by STREQUAL PROJECT_VERSION)
  message(FATAL_ERROR "the kernels in ${XFORMERS_KERNELS_FROM} are of xformers ${_made_by}, expected ${PROJECT_VERSION}.  "
                      "Fix: use sources and kernels of one release")
endif()
set(XFORMERS_CUDA ON)
if(_cuda STREQUAL "")  # JSON's null
  set(XFORMERS_CUDA OFF)
endif()

add_library(xformers_base INTERFACE)
add_library(xformers::base ALIAS xformers_base)
target_include_directories(xformers_base INTERFACE "${PROJECT_SOURCE_DIR}")
target_compile_features(xformers_base INTERFACE cxx_std_20)
foreach(library IN ITEMS xformers_attention_kernels xformers_kernels)
  add_library(${library} SHARED IMPORTED GLOBAL)
  set_target_properties(${library} PROPERTIES IMPORTED_LOCATION "${XFORMERS_KERNELS_FROM}/lib${library}.so"
                                              IMPORTED_SONAME lib${library}.so)
endforeach()
target_link_libraries(xformers_attention_kernels INTERFACE xformers_base)
target_link_libraries(xformers_kernels INTERFACE xformers_attention_kernels)
