# Compile through ccache where there is one, unless the caller chose a launcher.
if(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(XQUANT_CCACHE ccache)
  mark_as_advanced(XQUANT_CCACHE)
  if(XQUANT_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${XQUANT_CCACHE}")
  endif()
endif()
