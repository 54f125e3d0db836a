# Builds and runs the program in user/. WAY is find_package (after an install into a scratch folder), add_subdirectory, or pkg_config (as
# find_package, without CMake on the user's side).
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

# The user's program says which version it was compiled against.
function(check_program program)
  run("${program}")
  if(NOT output MATCHES "xquant ${VERSION}")
    message(FATAL_ERROR "the user's program said: ${output}")
  endif()
  message("${output}")
endfunction()

file(REMOVE_RECURSE "${SCRATCH}")
if(WAY STREQUAL "pkg_config")
  if(NOT PKG_CONFIG)
    message("xquant: SKIPPED, no pkg-config: nothing shows that xquant.pc works")
    return()
  endif()
  # The tree is moved after the install, so xquant.pc must find the headers from where it is.
  run("${CMAKE_COMMAND}" --install "${XQUANT_BUILD}" --prefix "${SCRATCH}/before")
  file(RENAME "${SCRATCH}/before" "${SCRATCH}/prefix")
  file(GLOB_RECURSE file "${SCRATCH}/prefix/xquant.pc")
  cmake_path(GET file PARENT_PATH folder)
  set(ENV{PKG_CONFIG_LIBDIR} "${folder}")  # no other folder is searched
  set(ENV{PKG_CONFIG_PATH} "")
  run("${PKG_CONFIG}" --exact-version=${VERSION} xquant)
  run("${PKG_CONFIG}" --cflags xquant)
  separate_arguments(flags UNIX_COMMAND "${output}")
  run("${COMPILER}" -std=c++20 ${flags} "${CMAKE_CURRENT_LIST_DIR}/user/main.cpp" -o "${SCRATCH}/user")
  check_program("${SCRATCH}/user")
  return()
endif()

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
check_program("${SCRATCH}/build/user")
