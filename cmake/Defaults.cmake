# What a build of this repository itself uses where the caller said nothing; a project that includes us keeps its own.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(XFORMERS_CCACHE ccache DOC "Compiler cache, used when present")
mark_as_advanced(XFORMERS_CCACHE)
if(XFORMERS_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Precompiled headers: the cache trusts that their macros are those of the unit, as the compiler does.
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros "${XFORMERS_CCACHE}")
endif()

add_compile_options(-Wall -Wextra)
if(XFORMERS_WERROR)
  add_compile_options(-Werror)
endif()
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options(-Wno-restrict)  # false alarms about std::string (GCC bug 105329)
endif()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12)
  message(FATAL_ERROR "g++ is ${CMAKE_CXX_COMPILER_VERSION}, expected 12 or later.  "
                      "Fix: install g++-12 and pass -DCMAKE_CXX_COMPILER=g++-12")
endif()
