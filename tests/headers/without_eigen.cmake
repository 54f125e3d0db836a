# Lists every file that <xquant/xquant.hpp> reads, and fails if one of them is Eigen's.
execute_process(
  COMMAND "${COMPILER}" -std=c++20 -M -x c++ "-I${INCLUDE}" "${INCLUDE}/xquant/xquant.hpp"
  OUTPUT_VARIABLE files
  ERROR_VARIABLE errors
  RESULT_VARIABLE result
)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "xquant.hpp does not preprocess:\n${errors}")
endif()
if(files MATCHES "[^ ]*/Eigen/[^ ]*")
  message(FATAL_ERROR "xquant.hpp includes Eigen: ${CMAKE_MATCH_0}")
endif()
