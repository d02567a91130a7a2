# cmake --install: libraries, public headers, find_package(xformers) and pkg-config files, in two components:
#   kernels    the torch-free kernels; complete by itself
#   operators  the operators and modules over them
# Components `python`, `torch_library` and `sources` hold what a wheel carries.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/xformers")

# One export set per library, so that find_package(xformers COMPONENTS kernels) works without torch.
set_target_properties(xformers_base PROPERTIES EXPORT_NAME base)
set_target_properties(xformers_attention_kernels PROPERTIES EXPORT_NAME attention_kernels)
set_target_properties(xformers_kernels PROPERTIES EXPORT_NAME kernels)
install(TARGETS xformers_base xformers_attention_kernels xformers_kernels EXPORT xformers_kernels COMPONENT kernels
        LIBRARY COMPONENT kernels NAMELINK_COMPONENT kernels INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT xformers_kernels NAMESPACE xformers:: DESTINATION "${config_dir}" COMPONENT kernels)
if(XFORMERS_OPS)
  set_target_properties(xformers_attention PROPERTIES EXPORT_NAME attention)
  set_target_properties(xformers_ops PROPERTIES EXPORT_NAME ops)
  install(TARGETS xformers xformers_ops xformers_attention EXPORT xformers_ops COMPONENT operators
          LIBRARY COMPONENT operators NAMELINK_COMPONENT operators INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT xformers_ops NAMESPACE xformers:: DESTINATION "${config_dir}" COMPONENT operators)
endif()

# Public headers: the parameter structs and entry points of the kernels, the operators' functions.
file(GLOB headers RELATIVE "${PROJECT_SOURCE_DIR}" CONFIGURE_DEPENDS xformers/kernels/base/*.h xformers/kernels/params/*.h
     xformers/kernels/cpu/*/*_cpu.h)
list(APPEND headers xformers/kernels/cpu/base/cpu_features.h xformers/kernels/cpu/base/isa_choice.h
     xformers/kernels/cpu/base/parallel_for.h)
file(GLOB cuda_headers RELATIVE "${PROJECT_SOURCE_DIR}" CONFIGURE_DEPENDS xformers/kernels/cuda/*/*_cuda.h)
set(attention xformers/kernels/cuda/attention)
list(APPEND cuda_headers xformers/kernels/cuda/base/device.h xformers/kernels/cuda/base/stream.h
     # What a choice of an attention kernel holds by value:
     ${attention}/bwd_args.h ${attention}/facts.h ${attention}/features.h ${attention}/plans.h
     ${attention}/sm80/bwd_plan.h ${attention}/sm80/fwd_plan.h)
if(XFORMERS_OPS)
  get_property(operators GLOBAL PROPERTY XFORMERS_PUBLIC_HEADERS)
  file(GLOB_RECURSE modules RELATIVE "${PROJECT_SOURCE_DIR}" CONFIGURE_DEPENDS xformers/nn/*.h)
endif()
# What the reference of `make docs` has an entry for, in every build.
set(operator_headers ${operators} ${modules})
list(JOIN headers "\n" lines)
list(JOIN operator_headers "\n" operator_lines)
list(JOIN cuda_headers "\n" cuda_lines)
file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/public_headers.txt" CONTENT "${lines}\n${operator_lines}\n${cuda_lines}\n")
if(XFORMERS_CUDA)
  list(APPEND headers ${cuda_headers})
endif()
function(xformers_install_headers component)
  foreach(header IN LISTS ARGN)
    get_filename_component(folder "${header}" DIRECTORY)
    install(FILES "${header}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/${folder}" COMPONENT ${component})
  endforeach()
endfunction()
xformers_install_headers(kernels ${headers})
xformers_install_headers(operators ${operator_headers})
configure_file(cmake/version.h.in "${PROJECT_BINARY_DIR}/generated/xformers/version.h" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/generated/xformers/version.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xformers" COMPONENT kernels)
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/licenses/xformers" COMPONENT kernels)

if(XFORMERS_OPS)  # the operators run with the series they were built with
  string(REPLACE "." ";" series "${XFORMERS_TORCH_SERIES}")
  list(GET series 0 major)
  list(GET series 1 minor)
  math(EXPR minor "${minor} + 1")
  set(XFORMERS_TORCH_NEXT_SERIES "${major}.${minor}")
endif()
configure_package_config_file(cmake/xformersConfig.cmake.in xformersConfig.cmake INSTALL_DESTINATION "${config_dir}"
                              NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(xformersConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/xformersConfig.cmake" "${PROJECT_BINARY_DIR}/xformersConfigVersion.cmake"
              cmake/TorchTargets.cmake DESTINATION "${config_dir}" COMPONENT kernels)

# pkg-config: paths are relative to the file, so that an unpacked archive works where it lies.
function(xformers_pkg_config component name description requires libs)
  set(folder "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
  file(RELATIVE_PATH to_prefix "/${folder}" "/")
  configure_file(cmake/package.pc.in "${PROJECT_BINARY_DIR}/${name}.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/${name}.pc" DESTINATION "${folder}" COMPONENT ${component})
endfunction()
xformers_pkg_config(kernels xformers-kernels "Memory-efficient transformer kernels without a framework" ""
                    "-lxformers_kernels -lxformers_attention_kernels")
if(XFORMERS_OPS)  # LibTorch has no pkg-config file: its folders and libraries are the caller's, of this series
  xformers_pkg_config(operators xformers "Operators and modules on LibTorch ${XFORMERS_TORCH_SERIES}" xformers-kernels
                      "-lxformers -lxformers_ops -lxformers_attention")
endif()
include(cmake/Archives.cmake)
