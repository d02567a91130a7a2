# An imported target made from an installed torch package: a Python wheel (CPU-only or CUDA) or LibTorch's archive.
#
#   xformers_torch::cpu   libtorch_cpu, libc10 and their headers
#
# The package's own find_package(Torch) wants a CUDA toolkit whenever the wheel was built with CUDA, and adds compiler
# flags to whoever calls it. This module needs no toolkit, sets no flags, defines nothing in torch's namespace and writes
# nothing to the cache.
#
# Where it looks, first hit wins:
#   XFORMERS_TORCH_DIR    the package folder, the one that holds lib/ and include/
#   TORCH_INSTALL_PREFIX  the torch that the caller's own find_package(Torch) has found
#   CMAKE_PREFIX_PATH     LibTorch's folder, or torch.utils.cmake_prefix_path
#   Python_EXECUTABLE     the torch that this interpreter would import; else ${CMAKE_SOURCE_DIR}/.venv, else python3
#
# xformers_find_torch(MINIMUM <major.minor> [BELOW <major.minor>]) takes torch from MINIMUM on, up to, but not including,
# BELOW. It sets XFORMERS_TORCH_DIR and XFORMERS_TORCH_VERSION, or explains itself in XFORMERS_TORCH_PROBLEM.
include_guard(GLOBAL)

# The folder of the torch package that `python` would import, without importing it.
function(_xformers_ask_python python result)
  execute_process(
    COMMAND "${python}" -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

# Interpreters that may have torch, best first.
function(_xformers_pythons result)
  set(pythons)
  if(Python_EXECUTABLE)
    list(APPEND pythons "${Python_EXECUTABLE}")
  else()
    if(EXISTS "${CMAKE_SOURCE_DIR}/.venv/bin/python")
      list(APPEND pythons "${CMAKE_SOURCE_DIR}/.venv/bin/python")
    endif()
    find_program(python NAMES python3 python NO_CACHE)
    if(python)
      list(APPEND pythons "${python}")
    endif()
  endif()
  set(${result} "${pythons}" PARENT_SCOPE)
endfunction()

# The package's folder, or nothing, and where it was looked for.
function(_xformers_locate_torch result asked)
  set(looked)
  set(found)
  set(prefixes ${TORCH_INSTALL_PREFIX} ${CMAKE_PREFIX_PATH})
  foreach(prefix IN LISTS prefixes)
    foreach(folder IN ITEMS "${prefix}" "${prefix}/../..")  # ../..: of share/cmake
      if(NOT found AND EXISTS "${folder}/lib/libtorch_cpu.so")
        get_filename_component(found "${folder}" ABSOLUTE)
      endif()
    endforeach()
  endforeach()
  if(NOT found)
    _xformers_pythons(looked)
    foreach(python IN LISTS looked)
      _xformers_ask_python("${python}" found)
      if(found)
        break()
      endif()
    endforeach()
  endif()
  set(${result} "${found}" PARENT_SCOPE)
  set(${asked} "${looked}" PARENT_SCOPE)
endfunction()

# Major.minor.patch from the headers; version.py of a wheel adds the local part ("2.11.0+cu130").
function(_xformers_torch_version folder result)
  set(version "")
  foreach(header IN ITEMS torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
    if(NOT version AND EXISTS "${folder}/include/${header}")
      file(READ "${folder}/include/${header}" text)
      if(text MATCHES "TORCH_VERSION_MAJOR ([0-9]+).*TORCH_VERSION_MINOR ([0-9]+).*TORCH_VERSION_PATCH ([0-9]+)")
        set(version "${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3}")
      endif()
    endif()
  endforeach()
  if(version AND EXISTS "${folder}/version.py")
    file(READ "${folder}/version.py" text)
    if(text MATCHES "__version__ = '([^']+)'")
      set(version "${CMAKE_MATCH_1}")
    endif()
  endif()
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

macro(_xformers_torch_problem)
  set(XFORMERS_TORCH_PROBLEM "${ARGN}" PARENT_SCOPE)
  return()
endmacro()

function(xformers_find_torch)
  cmake_parse_arguments(PARSE_ARGV 0 accept "" "MINIMUM;BELOW" "")
  set(folder "${XFORMERS_TORCH_DIR}")
  if(NOT folder)
    _xformers_locate_torch(folder asked)
  endif()
  set(expected "torch >= ${accept_MINIMUM}")
  set(requirement "torch>=${accept_MINIMUM}")
  if(accept_BELOW)
    string(APPEND expected ", < ${accept_BELOW}")
    string(APPEND requirement ",<${accept_BELOW}")
  endif()
  set(fix "Fix: pip install '${requirement}' into that Python, or pass -DPython_EXECUTABLE=<python \
that has it>, -DCMAKE_PREFIX_PATH=<LibTorch> or -DXFORMERS_TORCH_DIR=<folder of the torch package>")
  if(NOT folder)
    list(JOIN asked ", " asked)
    _xformers_torch_problem("${expected} was not found (asked: ${asked}).  ${fix}")
  endif()
  foreach(part IN ITEMS lib/libtorch_cpu.so lib/libc10.so include/ATen/ATen.h)
    if(NOT EXISTS "${folder}/${part}")
      _xformers_torch_problem("${folder} is not a torch package: it has no ${part}.  ${fix}")
    endif()
  endforeach()
  _xformers_torch_version("${folder}" version)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" series "${version}")
  if(series VERSION_LESS accept_MINIMUM OR (accept_BELOW AND series VERSION_GREATER_EQUAL accept_BELOW))
    _xformers_torch_problem("torch in ${folder} is ${version}, expected ${expected}.  ${fix}")
  endif()

  if(NOT TARGET xformers_torch::cpu)
    set(includes "${folder}/include" "${folder}/include/torch/csrc/api/include")
    add_library(xformers_torch::c10 SHARED IMPORTED GLOBAL)
    set_target_properties(xformers_torch::c10 PROPERTIES IMPORTED_LOCATION "${folder}/lib/libc10.so"
                                                         INTERFACE_INCLUDE_DIRECTORIES "${includes}")
    add_library(xformers_torch::cpu SHARED IMPORTED GLOBAL)
    set_target_properties(xformers_torch::cpu PROPERTIES IMPORTED_LOCATION "${folder}/lib/libtorch_cpu.so"
                                                         INTERFACE_INCLUDE_DIRECTORIES "${includes}"
                                                         INTERFACE_LINK_LIBRARIES xformers_torch::c10)
  endif()
  set(XFORMERS_TORCH_DIR "${folder}" PARENT_SCOPE)
  set(XFORMERS_TORCH_VERSION "${version}" PARENT_SCOPE)
  set(XFORMERS_TORCH_PROBLEM "" PARENT_SCOPE)
endfunction()
