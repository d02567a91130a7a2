# Imported targets made from an installed torch package: a Python wheel (CPU-only or CUDA) or LibTorch's archive.
#
#   torch::cpu   libtorch_cpu, libc10 and their headers
#
# The package's own find_package(Torch) wants a CUDA toolkit whenever the wheel was built with CUDA, and adds compiler
# flags to whoever calls it. This module needs no toolkit and sets no flags.
#
# Where it looks, first hit wins:
#   XFORMERS_TORCH_DIR   the package folder, the one that holds lib/ and include/
#   Python_EXECUTABLE    the torch that this interpreter would import; else ${CMAKE_SOURCE_DIR}/.venv, else python3
#
# xformers_find_torch(<major.minor>...) takes the versions that will do. It defines torch::cpu and sets
# XFORMERS_TORCH_DIR (cached) and XFORMERS_TORCH_VERSION, or explains itself in XFORMERS_TORCH_PROBLEM.
include_guard(GLOBAL)

set(XFORMERS_TORCH_DIR "" CACHE PATH "Folder of the torch package (holds lib/ and include/); empty: ask Python")

# The folder of the torch package that `python` would import, without importing it.
function(_xformers_ask_python python result)
  execute_process(
    COMMAND "${python}" -c
            "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

function(_xformers_locate_torch result asked)
  set(pythons)
  if(Python_EXECUTABLE)
    list(APPEND pythons "${Python_EXECUTABLE}")
  else()
    if(EXISTS "${CMAKE_SOURCE_DIR}/.venv/bin/python")
      list(APPEND pythons "${CMAKE_SOURCE_DIR}/.venv/bin/python")
    endif()
    find_program(XFORMERS_PYTHON NAMES python3 python DOC "Python that has torch")
    mark_as_advanced(XFORMERS_PYTHON)
    if(XFORMERS_PYTHON)
      list(APPEND pythons "${XFORMERS_PYTHON}")
    endif()
  endif()
  foreach(python IN LISTS pythons)
    _xformers_ask_python("${python}" folder)
    if(folder)
      break()
    endif()
  endforeach()
  set(${result} "${folder}" PARENT_SCOPE)
  set(${asked} "${pythons}" PARENT_SCOPE)
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
  set(accepted ${ARGN})
  set(folder "${XFORMERS_TORCH_DIR}")
  if(NOT folder)
    _xformers_locate_torch(folder asked)
  endif()
  list(JOIN accepted " or " accepted_text)
  list(GET accepted 0 preferred)
  set(fix "Fix: pip install 'torch==${preferred}.*' into that Python, or pass -DPython_EXECUTABLE=<python that has it> or \
-DXFORMERS_TORCH_DIR=<folder of the torch package>")
  if(NOT folder)
    list(JOIN asked ", " asked)
    _xformers_torch_problem("torch ${accepted_text} was not found (asked: ${asked}).  ${fix}")
  endif()
  foreach(part IN ITEMS lib/libtorch_cpu.so lib/libc10.so include/ATen/ATen.h)
    if(NOT EXISTS "${folder}/${part}")
      _xformers_torch_problem("${folder} is not a torch package: it has no ${part}.  ${fix}")
    endif()
  endforeach()
  _xformers_torch_version("${folder}" version)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" major_minor "${version}")
  if(NOT major_minor IN_LIST accepted)
    _xformers_torch_problem("torch in ${folder} is ${version}, expected ${accepted_text}.  ${fix}")
  endif()

  if(NOT TARGET torch::cpu)
    set(includes "${folder}/include" "${folder}/include/torch/csrc/api/include")
    add_library(torch::c10 SHARED IMPORTED GLOBAL)
    set_target_properties(torch::c10 PROPERTIES IMPORTED_LOCATION "${folder}/lib/libc10.so"
                                                INTERFACE_INCLUDE_DIRECTORIES "${includes}")
    add_library(torch::cpu SHARED IMPORTED GLOBAL)
    set_target_properties(torch::cpu PROPERTIES IMPORTED_LOCATION "${folder}/lib/libtorch_cpu.so"
                                                INTERFACE_INCLUDE_DIRECTORIES "${includes}"
                                                INTERFACE_LINK_LIBRARIES torch::c10)
  endif()
  set(XFORMERS_TORCH_DIR "${folder}" CACHE PATH "" FORCE)
  set(XFORMERS_TORCH_VERSION "${version}" PARENT_SCOPE)
  set(XFORMERS_TORCH_PROBLEM "" PARENT_SCOPE)
endfunction()
