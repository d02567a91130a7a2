# Outside libraries: the installed package where there is one, else its sources at a pinned release.
#
#   xformers_dependency(hwy)             hwy::hwy; the kernels use its headers alone
#   xformers_dependency(GTest)           GTest::gtest, GTest::gtest_main
#   xformers_dependency(CLI11)           CLI11::CLI11
#   xformers_dependency(nlohmann_json)   nlohmann_json::nlohmann_json
#   xformers_dependency(ZLIB)            xformers_zlib, the static library: wheels need no other
include_guard(GLOBAL)
include(FetchContent)

set(_hwy_release libhwy-dev 1.0.3 google/highway/archive/refs/tags/1.2.0.tar.gz
                 7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343)
set(_GTest_release libgtest-dev 1.11 google/googletest/releases/download/v1.15.2/googletest-1.15.2.tar.gz
                   7b42b4d6ed48810c5362c265a17faebe90dc2373c885e5216439d37927f02926)
set(_CLI11_release libcli11-dev 2.1 CLIUtils/CLI11/archive/refs/tags/v2.4.1.tar.gz
                   73b7ec52261ce8fe980a29df6b4ceb66243bb0b779451dbd3d014cfec9fdbb58)
set(_nlohmann_json_release nlohmann-json3-dev 3.9 nlohmann/json/releases/download/v3.11.3/json.tar.xz
                           d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
set(_ZLIB_release zlib1g-dev 1.2.11 madler/zlib/releases/download/v1.3.1/zlib-1.3.1.tar.gz
                  9a93b2b7dfdac77ceba5a558a580e74667dd6fede4585b91eefb60f03b72df23)
set(ZLIB_USE_STATIC_LIBS ON)

# Their own tests, examples and install rules stay out.
set(SKIP_INSTALL_ALL ON)  # zlib's
set(_off BUILD_TESTING HWY_ENABLE_CONTRIB HWY_ENABLE_EXAMPLES HWY_ENABLE_TESTS HWY_ENABLE_INSTALL BUILD_GMOCK
         INSTALL_GTEST JSON_BuildTests JSON_Install ZLIB_BUILD_EXAMPLES)

function(xformers_dependency name)
  if(NOT DEFINED _${name}_release)
    message(FATAL_ERROR "unknown dependency ${name}: the ones there are stand at the top of cmake/Dependencies.cmake")
  endif()
  # What the Python package carries beside the sources of the operators (CarriedSources.cmake).
  set(_carried "${PROJECT_SOURCE_DIR}/third_party/${name}")
  if(EXISTS "${_carried}")
    if(NOT TARGET ${name}::${name})
      add_library(${name}::${name} INTERFACE IMPORTED GLOBAL)
      target_include_directories(${name}::${name} SYSTEM INTERFACE "${_carried}")
    endif()
    return()
  endif()
  list(GET _${name}_release 0 _debian)
  list(GET _${name}_release 1 _minimum)
  list(GET _${name}_release 2 _path)
  list(GET _${name}_release 3 _sha256)
  find_package(${name} ${_minimum} QUIET GLOBAL)
  FetchContent_GetProperties(${name})
  if(NOT ${name}_FOUND AND NOT ${name}_POPULATED)
    message(STATUS "${name} >= ${_minimum} is not installed (Debian: ${_debian}); fetching https://github.com/${_path}")
    foreach(_option IN LISTS _off)
      set(${_option} OFF)
    endforeach()
    set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
    set(CMAKE_WARN_DEPRECATED OFF)
    if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.28)
      set(_only_what_we_use EXCLUDE_FROM_ALL)
    endif()
    FetchContent_Declare(${name} URL https://github.com/${_path} URL_HASH SHA256=${_sha256} INACTIVITY_TIMEOUT 60
                                 DOWNLOAD_EXTRACT_TIMESTAMP ON SYSTEM ${_only_what_we_use})
    FetchContent_MakeAvailable(${name})
  endif()
  if(TARGET hwy AND NOT TARGET hwy::hwy)
    add_library(hwy::hwy ALIAS hwy)
  endif()
  if(name STREQUAL "ZLIB" AND NOT TARGET xformers_zlib)
    add_library(xformers_zlib INTERFACE)
    if(ZLIB_FOUND)
      target_link_libraries(xformers_zlib INTERFACE ZLIB::ZLIB)
    else()
      target_link_libraries(xformers_zlib INTERFACE zlibstatic)
      target_include_directories(xformers_zlib SYSTEM INTERFACE "${zlib_SOURCE_DIR}" "${zlib_BINARY_DIR}")
    endif()
  endif()
endfunction()
