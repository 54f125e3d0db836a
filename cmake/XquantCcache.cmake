# Compile through ccache where there is one, unless the caller chose a launcher.
if(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(XQUANT_CCACHE ccache)
  mark_as_advanced(XQUANT_CCACHE)
  if(XQUANT_CCACHE)
    # Without this ccache leaves files alone that use a precompiled header.
    set(xquant_ccache "${CMAKE_COMMAND}" -E env CCACHE_SLOPPINESS=pch_defines,time_macros "${XQUANT_CCACHE}")
    set(CMAKE_CXX_COMPILER_LAUNCHER "${xquant_ccache}")
  endif()
endif()
