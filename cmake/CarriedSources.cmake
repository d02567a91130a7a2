# xformers/_sources in the Python package: what `python -m xformers.build` compiles for a torch that came later. The operators,
# the headers of the kernels, the build files, and the headers of nlohmann-json.
set(_to xformers/_sources)
foreach(_part IN ITEMS ops nn)
  install(DIRECTORY xformers/${_part} DESTINATION ${_to}/xformers COMPONENT sources EXCLUDE_FROM_ALL
          FILES_MATCHING PATTERN *.h PATTERN *.cpp PATTERN *.inc PATTERN CMakeLists.txt)
endforeach()
foreach(_part IN ITEMS kernels profiler)
  install(DIRECTORY xformers/${_part} DESTINATION ${_to}/xformers COMPONENT sources EXCLUDE_FROM_ALL
          FILES_MATCHING PATTERN *.h)
endforeach()
install(FILES CMakeLists.txt pyproject.toml LICENSE DESTINATION ${_to} COMPONENT sources EXCLUDE_FROM_ALL)
install(FILES python/xformers/version.py DESTINATION ${_to}/python/xformers COMPONENT sources EXCLUDE_FROM_ALL)
file(GLOB _files cmake/*.cmake cmake/*.in)
install(FILES ${_files} DESTINATION ${_to}/cmake COMPONENT sources EXCLUDE_FROM_ALL)

FetchContent_GetProperties(nlohmann_json)  # nlohmann_json_SOURCE_DIR where it was fetched
set(_json "${nlohmann_json_SOURCE_DIR}/include")
if(NOT nlohmann_json_SOURCE_DIR)
  get_target_property(_json nlohmann_json::nlohmann_json INTERFACE_INCLUDE_DIRECTORIES)
  list(GET _json 0 _json)
endif()
install(DIRECTORY "${_json}/nlohmann" DESTINATION ${_to}/third_party/nlohmann_json COMPONENT sources EXCLUDE_FROM_ALL)
