# Warns, once in a project, where it compiles the headers for x86 without flags for a vector unit: they use the scalar
# backend then. For projects that use xquant, by find_package or add_subdirectory; XQUANT_WARN_SCALAR=OFF silences it.
#
# A project may give its targets flags after it has found xquant, so all targets are looked at when its CMakeLists.txt
# has ended.
option(XQUANT_WARN_SCALAR "Warn where a project compiles xquant's headers without flags for a vector unit" ON)

# Adds to `links` and `flags` in the caller what a target is linked with, and the flags that come with it.
function(xquant_collect_flags target kind)
  foreach(property ${kind}COMPILE_OPTIONS ${kind}COMPILE_DEFINITIONS)
    get_target_property(values ${target} ${property})
    if(values)
      list(APPEND flags ${values})
    endif()
  endforeach()
  get_target_property(libraries ${target} ${kind}LINK_LIBRARIES)
  foreach(library IN LISTS libraries)
    if(TARGET "${library}" AND NOT library IN_LIST links)
      list(APPEND links ${library})
      # The runtime is compiled already, and its own header needs no flags.
      if(NOT library MATCHES "^xquant(::|_)runtime$")
        xquant_collect_flags(${library} INTERFACE_)
      endif()
    endif()
  endforeach()
  set(links "${links}" PARENT_SCOPE)
  set(flags "${flags}" PARENT_SCOPE)
endfunction()

# Sets `result` to a target of this directory, or below it, that uses the headers without such flags.
function(xquant_find_scalar_target directory result)
  get_property(targets DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
  string(TOUPPER "${CMAKE_BUILD_TYPE}" build_type)
  foreach(target IN LISTS targets)
    get_target_property(type ${target} TYPE)
    if(NOT type MATCHES "^(EXECUTABLE|(STATIC|SHARED|MODULE|OBJECT)_LIBRARY)$" OR target MATCHES "^xquant_runtime")
      continue()
    endif()
    set(links "")
    set(flags ${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${build_type}})
    xquant_collect_flags(${target} "")
    get_target_property(sources ${target} SOURCES)
    foreach(source IN LISTS sources)
      get_source_file_property(options "${source}" TARGET_DIRECTORY ${target} COMPILE_OPTIONS)
      get_source_file_property(more "${source}" TARGET_DIRECTORY ${target} COMPILE_FLAGS)
      list(APPEND flags ${options} ${more})
    endforeach()
    if(links MATCHES "(^|;)xquant(::xquant)?(;|$)" AND NOT flags MATCHES "-march=|-mavx2|-mavx512|[/-]arch:AVX|XQUANT_FORCE_SCALAR")
      set(${result} ${target} PARENT_SCOPE)
      return()
    endif()
  endforeach()
  get_property(folders DIRECTORY "${directory}" PROPERTY SUBDIRECTORIES)
  foreach(folder IN LISTS folders)
    xquant_find_scalar_target("${folder}" found)
    if(found)
      set(${result} ${found} PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

function(xquant_warn_scalar)
  xquant_find_scalar_target("${CMAKE_SOURCE_DIR}" found)
  if(found)
    message(WARNING
      "xquant: target ${found} compiles the headers without flags for a vector unit, such as -march=native or -march=x86-64-v3. The scalar "
      "backend serves it, and decoding takes up to 13 times as long as with AVX2. xquant::runtime needs no flags: it picks the "
      "processor's code when the program runs (docs/embedding.md). XQUANT_WARN_SCALAR=OFF silences this.")
  endif()
endfunction()

get_property(xquant_warns GLOBAL PROPERTY XQUANT_WARNS)
if(XQUANT_WARN_SCALAR AND NOT xquant_warns AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|i.86)$")
  set_property(GLOBAL PROPERTY XQUANT_WARNS ON)
  cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL xquant_warn_scalar)
endif()
