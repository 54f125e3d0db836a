# xquant_test(<name> SOURCES <a.cpp> ... [LIBS <target> ...] [LABELS <label> ...] [TAGS <tag> ...] [MODELS <tag>=<variable> ...]
#             [TIMEOUT <seconds>] [COST <n>])
#
# One program of Catch2 tests, bin/test_<name>, and a ctest test "<folder>.<name>" that runs it (just "<name>" where the
# folder has that name). Its labels are the folder below tests/ and LABELS. Test cases with one of the Catch2 TAGS run on
# their own instead, as "<folder>.<name>.<tag>" with label <tag>; those with a tag of MODELS do so with label model. ctest starts
# tests of a high COST first: long tests that begin late keep one core idle. Two labels mean something:
#
#   threads   tools/test runs these under ThreadSanitizer, too
#   model     reads the model that the environment variable names. Skipped, loudly, where there is none; an error there if the
#             environment says CI=true. Left out of all presets but release: too slow. A test that says "*** SKIPPED" of a part
#             counts as skipped, too, unless it fails (cmake/RunWithModel.cmake).

find_package(Catch2 REQUIRED)

# Catch2's main is slow to compile: once is enough.
if(TARGET Catch2::Catch2WithMain)
  add_library(xquant_catch INTERFACE)
  target_link_libraries(xquant_catch INTERFACE Catch2::Catch2WithMain)
  target_include_directories(xquant_catch INTERFACE "${PROJECT_SOURCE_DIR}/tests/support" "${PROJECT_SOURCE_DIR}/tests")
else()
  add_library(xquant_catch STATIC EXCLUDE_FROM_ALL "${PROJECT_SOURCE_DIR}/tests/support/catch_main.cpp")
  target_compile_features(xquant_catch PUBLIC cxx_std_20)
  target_link_libraries(xquant_catch PUBLIC Catch2::Catch2 PRIVATE xquant_build_flags)
  target_include_directories(xquant_catch PUBLIC "${PROJECT_SOURCE_DIR}/tests/support" "${PROJECT_SOURCE_DIR}/tests")
endif()

# Catch2 and the library's front door are a precompiled header, and caches of the best backend are compiled once.
add_library(xquant_test_pch OBJECT EXCLUDE_FROM_ALL "${PROJECT_SOURCE_DIR}/tests/support/pch.cpp")
target_link_libraries(xquant_test_pch PRIVATE xquant_catch xquant_compiled_best xquant_build_flags)
target_precompile_headers(xquant_test_pch PRIVATE
  "${PROJECT_SOURCE_DIR}/tests/support/catch.hpp" "${PROJECT_SOURCE_DIR}/examples/compiled/best.hpp")

add_custom_target(xquant_threads_tests COMMENT "the tests labelled threads")

# Registers one run of test program `program`; model: the environment variable that names its model, or "".
function(xquant_add_run test program labels timeout cost model)
  if(model)
    list(JOIN ARGN " " filter)
    add_test(NAME ${test} COMMAND ${CMAKE_COMMAND}
      -DPROGRAM=$<TARGET_FILE:${program}>
      -DFILTER=${filter}
      -DMODEL=${model}
      -P "${PROJECT_SOURCE_DIR}/cmake/RunWithModel.cmake")
    set_tests_properties(${test} PROPERTIES SKIP_REGULAR_EXPRESSION "xquant: SKIPPED")
  else()
    add_test(NAME ${test} COMMAND ${program} ${ARGN})
  endif()
  set_tests_properties(${test} PROPERTIES
    LABELS "${labels}"
    TIMEOUT ${timeout}
    COST ${cost}
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
  )
  if("threads" IN_LIST labels)
    add_dependencies(xquant_threads_tests ${program})
  endif()
endfunction()

function(xquant_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TIMEOUT;COST" "SOURCES;LIBS;LABELS;TAGS;MODELS")
  if(NOT arg_SOURCES OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "xquant_test(${name}): needs SOURCES, does not know \"${arg_UNPARSED_ARGUMENTS}\"")
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 600)
  endif()
  if(NOT arg_COST)
    set(arg_COST 0)
  endif()
  cmake_path(GET CMAKE_CURRENT_SOURCE_DIR FILENAME folder)

  add_executable(test_${name} ${arg_SOURCES})
  target_link_libraries(test_${name} PRIVATE ${arg_LIBS} xquant_compiled_best xquant_catch xquant::xquant xquant_build_flags)
  target_precompile_headers(test_${name} REUSE_FROM xquant_test_pch)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # What the headers say of g++'s own intrinsics (xquant_uses_intrinsics) is lost in a precompiled header.
    target_compile_options(test_${name} PRIVATE -Wno-maybe-uninitialized -Wno-uninitialized)
  endif()

  set(test ${folder}.${name})
  if(folder STREQUAL name)
    set(test ${name})
  endif()
  set(others "")
  foreach(tag IN LISTS arg_TAGS)
    string(APPEND others "~[${tag}]")
    xquant_add_run(${test}.${tag} test_${name} "${folder};${tag};${arg_LABELS}" ${arg_TIMEOUT} ${arg_COST} "" "[${tag}]")
  endforeach()
  foreach(pair IN LISTS arg_MODELS)
    string(REGEX MATCH "^(.*)=(.*)$" pair "${pair}")
    set(tag ${CMAKE_MATCH_1})
    string(APPEND others "~[${tag}]")
    xquant_add_run(${test}.${tag} test_${name} "${folder};model;${arg_LABELS}" ${arg_TIMEOUT} ${arg_COST} "${CMAKE_MATCH_2}" "[${tag}]")
  endforeach()
  xquant_add_run(${test} test_${name} "${folder};${arg_LABELS}" ${arg_TIMEOUT} ${arg_COST} "" ${others})
endfunction()
