# xquant::runtime: the library compiled once for each level of a processor's instructions
# (include/xquant/runtime/level.hpp), and a front library that loads the best of them
# (include/xquant/runtime/loader.hpp). Option XQUANT_BUILD_RUNTIME; XQUANT_RUNTIME_LEVELS chooses levels.
#
# Each level is a shared object whose version script exports one name. All other symbols are bound inside it when it
# is linked, weak functions of the standard library among them, so the program's copies of these cannot take their
# place (-Bsymbolic is not needed on top of that), nor can they take the place of the program's.

# Why the runtime cannot be built here; empty if it can.
function(xquant_runtime_hindrance result)
  set(why "")
  string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
  set(flags "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}}")
  if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
    set(why "it knows shared objects of Linux only")
  elseif(NOT CMAKE_CXX_COMPILER_ID MATCHES "^(GNU|Clang)$")
    set(why "it knows g++ and clang++ only")
  elseif(flags MATCHES "(^| )(-m(avx|fma|f16c|bmi|lzcnt|movbe|sse[34])[^ ]*)")
    set(why "CMAKE_CXX_FLAGS has ${CMAKE_MATCH_2}, which would be in the level for all processors, too")
  elseif(flags MATCHES "-stdlib=libc\\+\\+")
    set(why "errors could not leave it: libc++ takes a type of two shared objects for two types")
  elseif(XQUANT_SANITIZE)
    set(why "XQUANT_SANITIZE is ${XQUANT_SANITIZE}, and the runtime is what programs are given")
  endif()
  set(${result} "${why}" PARENT_SCOPE)
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(xquant_runtime_known x86-64 x86-64-v3 x86-64-v4)
else()
  set(xquant_runtime_known base)  # one level, for all of them: the runtime is nothing but a library that is compiled already
endif()
xquant_runtime_hindrance(xquant_runtime_why)
set(xquant_runtime_default OFF)
if(PROJECT_IS_TOP_LEVEL AND NOT DEFINED XQUANT_BUILD_RUNTIME)
  if(xquant_runtime_why)
    message(STATUS "xquant: no target xquant::runtime: ${xquant_runtime_why}")
  elseif(xquant_runtime_known STREQUAL "base")
    message(STATUS "xquant: no target xquant::runtime: this processor would have one level; XQUANT_BUILD_RUNTIME=ON builds it")
  else()
    set(xquant_runtime_default ON)
  endif()
endif()
option(XQUANT_BUILD_RUNTIME "Build xquant::runtime, which picks the processor's code when a program runs"
  ${xquant_runtime_default})
if(NOT XQUANT_BUILD_RUNTIME)
  return()
endif()
if(xquant_runtime_why)
  message(FATAL_ERROR "xquant: XQUANT_BUILD_RUNTIME is on, and the runtime cannot be built: ${xquant_runtime_why}")
endif()
set(xquant_runtime_flags_x86-64 -march=x86-64)
set(xquant_runtime_flags_x86-64-v3 -march=x86-64-v3)
set(xquant_runtime_flags_x86-64-v4 -march=x86-64-v4 -mavx512vnni)
set(xquant_runtime_flags_base "")

set(XQUANT_RUNTIME_LEVELS "${xquant_runtime_known}" CACHE STRING "Levels that xquant::runtime is compiled for")
foreach(level IN LISTS XQUANT_RUNTIME_LEVELS)
  if(NOT level IN_LIST xquant_runtime_known)
    message(FATAL_ERROR "xquant: XQUANT_RUNTIME_LEVELS names ${level}; there are ${xquant_runtime_known}")
  endif()
endforeach()
if(NOT XQUANT_RUNTIME_LEVELS)
  message(FATAL_ERROR "xquant: XQUANT_RUNTIME_LEVELS is empty; there are ${xquant_runtime_known}")
endif()
# The loader takes the last one that runs.
set(xquant_runtime_levels ${xquant_runtime_known})
foreach(level IN LISTS xquant_runtime_known)
  if(NOT level IN_LIST XQUANT_RUNTIME_LEVELS)
    list(REMOVE_ITEM xquant_runtime_levels ${level})
  endif()
endforeach()

# The loader looks for levels in its own folder.
set(xquant_runtime_folder "${PROJECT_BINARY_DIR}/lib")

# What levels and loader have in common: a source, and a list of the symbols that it exports.
function(xquant_runtime_library target source exports flags)
  target_sources(${target} PRIVATE "${PROJECT_SOURCE_DIR}/bindings/runtime/${source}")
  set(script "${PROJECT_BINARY_DIR}/runtime/${target}.map")
  file(CONFIGURE OUTPUT "${script}" CONTENT "{\n    global: ${exports}\n    local: *;\n};\n" @ONLY)
  target_compile_options(${target} PRIVATE ${flags} $<$<CXX_COMPILER_ID:GNU>:-fno-gnu-unique>)
  target_link_options(${target} PRIVATE "LINKER:--version-script=${script}" "LINKER:-z,defs")
  set_target_properties(${target} PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY "${xquant_runtime_folder}"
    LINK_DEPENDS "${script}"
  )
endfunction()

set(xquant_runtime_names "")
foreach(level IN LISTS xquant_runtime_levels)
  set(target xquant_runtime_${level})
  add_library(${target} MODULE)
  xquant_runtime_library(${target} level.cpp "xquant_runtime_level;" "${xquant_runtime_flags_${level}};-fvisibility=hidden")
  target_compile_definitions(${target} PRIVATE "XQUANT_RUNTIME_LEVEL=\"${level}\"")
  if(TARGET xquant_svd)
    target_compile_definitions(${target} PRIVATE XQUANT_RUNTIME_SVD)
    target_link_libraries(${target} PRIVATE xquant_svd)
  endif()
  if(TARGET xquant_persistence)
    target_compile_definitions(${target} PRIVATE XQUANT_RUNTIME_PERSISTENCE)
    target_link_libraries(${target} PRIVATE xquant_persistence)
  endif()
  target_link_libraries(${target} PRIVATE xquant)
  # Whatever the build type, but for one that is asked to be slow: half the speed is no use to anyone who links this.
  target_compile_options(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:-O3>)
  target_compile_definitions(${target} PRIVATE $<$<NOT:$<CONFIG:Debug>>:NDEBUG>)
  set_target_properties(${target} PROPERTIES
    PREFIX lib
    OUTPUT_NAME "xquant_runtime-${PROJECT_VERSION}-${level}"
    SUFFIX .so
  )
  list(APPEND xquant_runtime_names "\"${level}\"")
endforeach()

add_library(xquant_runtime SHARED)
add_library(xquant::runtime ALIAS xquant_runtime)
list(JOIN xquant_runtime_names ", " xquant_runtime_names)
list(GET xquant_runtime_known 0 level)
# ? stands for the parenthesis, which a version script cannot name outside quotes, nor a * within.
xquant_runtime_library(xquant_runtime loader.cpp
  "extern \"C++\" { xquant::runtime::make_cache?*; xquant::runtime::predict?*; xquant::runtime::schemes?*;
        xquant::runtime::find_scheme?*; xquant::runtime::machine?*; xquant::runtime::plan?*;
        xquant::runtime::level?xquant::*; xquant::runtime::levels?xquant::*; };"
  "${xquant_runtime_flags_${level}}")
target_compile_definitions(xquant_runtime PRIVATE "XQUANT_RUNTIME_LEVELS=${xquant_runtime_names}")
target_link_libraries(xquant_runtime PUBLIC xquant PRIVATE ${CMAKE_DL_LIBS})
set_target_properties(xquant_runtime PROPERTIES
  EXPORT_NAME runtime
  VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
)
# Whoever builds a program with it needs the levels, too.
list(TRANSFORM xquant_runtime_levels PREPEND xquant_runtime_ OUTPUT_VARIABLE xquant_runtime_level_targets)
add_dependencies(xquant_runtime ${xquant_runtime_level_targets})
