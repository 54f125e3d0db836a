# Configures, builds and runs the project in user/. WAY is find_package (after an install into a scratch folder) or
# add_subdirectory.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${SCRATCH}")
set(arguments -DWAY=${WAY} -DXQUANT_VERSION=${VERSION})
if(WAY STREQUAL "find_package")
  run("${CMAKE_COMMAND}" --install "${XQUANT_BUILD}" --prefix "${SCRATCH}/prefix")
  list(APPEND arguments "-DCMAKE_PREFIX_PATH=${SCRATCH}/prefix")

  # All headers, and only headers, are installed.
  file(GLOB_RECURSE wanted RELATIVE "${XQUANT_SOURCE}/include" "${XQUANT_SOURCE}/include/*.hpp" "${XQUANT_SOURCE}/include/*.cuh")
  file(GLOB_RECURSE found RELATIVE "${SCRATCH}/prefix/include" "${SCRATCH}/prefix/include/*")
  list(SORT wanted)
  list(SORT found)
  if(NOT wanted STREQUAL found)
    message(FATAL_ERROR "installed headers differ from include/:\n${wanted}\n${found}")
  endif()
else()
  list(APPEND arguments "-DXQUANT_SOURCE=${XQUANT_SOURCE}")
endif()

run("${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_LIST_DIR}/user" -B "${SCRATCH}/build" -G "${GENERATOR}"
  "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_COMPILER_LAUNCHER=${LAUNCHER}"
  ${arguments})
run("${CMAKE_COMMAND}" --build "${SCRATCH}/build")
run("${SCRATCH}/build/user")
if(NOT output MATCHES "xquant ${VERSION}")
  message(FATAL_ERROR "the user's program said: ${output}")
endif()
message("${output}")
