# cmake -DPROGRAM=<test> -DFILTER=<tags> -DMODEL=<variable> -P RunWithModel.cmake: runs a test that reads the model named by an
# environment variable, XQUANT_MODEL for one. Where there is no model, or the test leaves a part out, it says "xquant: SKIPPED", by
# which ctest counts it as skipped; but not where the test fails.
if("$ENV{${MODEL}}" STREQUAL "" OR NOT EXISTS "$ENV{${MODEL}}")
  if("$ENV{CI}" STREQUAL "true")
    message(FATAL_ERROR "${MODEL} names no file; with CI=true that is an error")
  endif()
  message("xquant: SKIPPED, no model: set ${MODEL} to what tools/get-model prints (XQUANT_WHISPER: tools/whisper --data-only)")
  return()
endif()
execute_process(COMMAND "${PROGRAM}" ${FILTER} RESULT_VARIABLE result
  OUTPUT_VARIABLE printed ERROR_VARIABLE printed ECHO_OUTPUT_VARIABLE ECHO_ERROR_VARIABLE)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${PROGRAM}: ${result}")
endif()
if(NOT printed MATCHES "All tests passed \\([1-9]")
  message(FATAL_ERROR "${PROGRAM} ${FILTER}: nothing was tested")
endif()
if(printed MATCHES "[*][*][*] SKIPPED: ([^\n]*)")
  message("xquant: SKIPPED, ${CMAKE_MATCH_1}")
endif()
