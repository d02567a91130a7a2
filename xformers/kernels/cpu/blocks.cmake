# libxformers_kernels, the kernels around attention: of each family the entry points, <family>/<...>_cpu.cpp, and the units
# <family>/<...>_isa.cpp, compiled once per vector width. Included by ../CMakeLists.txt, which has the flags of the
# instruction sets.
file(GLOB entry_points CONFIGURE_DEPENDS cpu/*/*_cpu.cpp)
list(FILTER entry_points EXCLUDE REGEX "/(attention|merge)/[^/]+$")  # in libxformers_attention_kernels
target_sources(xformers_kernels PRIVATE ${entry_points})
file(GLOB vector_units CONFIGURE_DEPENDS cpu/*/*_isa.cpp)
# Compiled with the rounding to bf16, a unit has code for bf16 alone (XFORMERS_BY_ISA). Those that gain nothing from it:
# XFORMERS_BY_PLAIN_ISA.
set(plain_families blocksparse csr linear_attention sparse24)

# Its loops are vectors by hand: -O3 would only take longer to compile.
set_source_files_properties(cpu/linear_attention/linear_attention_isa.cpp PROPERTIES COMPILE_OPTIONS -O2)

function(xformers_vector_units isa)
  if(NOT isa IN_LIST XFORMERS_BUILT_ISAS)
    return()
  endif()
  set(units ${vector_units})
  if(isa STREQUAL "avx512_bf16")
    list(JOIN plain_families "|" plain)
    list(FILTER units EXCLUDE REGEX "/(${plain})/[^/]+$")
  endif()
  add_library(xformers_vector_${isa} OBJECT ${units})
  target_compile_definitions(xformers_vector_${isa} PRIVATE XFORMERS_ISA_NAMESPACE=isa_${isa})
  target_link_libraries(xformers_vector_${isa} PRIVATE xformers_base)
  target_include_directories(xformers_vector_${isa} SYSTEM
                             PRIVATE $<TARGET_PROPERTY:hwy::hwy,INTERFACE_INCLUDE_DIRECTORIES>)
  target_compile_options(xformers_vector_${isa} PRIVATE -O3 -fno-math-errno -fno-trapping-math ${ARGN})
  target_link_libraries(xformers_kernels PRIVATE $<BUILD_INTERFACE:xformers_vector_${isa}>)
endfunction()

xformers_vector_units(portable ${portable})
xformers_vector_units(avx2 -march=haswell)
xformers_vector_units(avx512 ${avx512})
xformers_vector_units(avx512_bf16 ${avx512} -mavx512bf16)
