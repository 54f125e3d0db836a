# Compiles SOURCE with -fno-exceptions, and runs it with an error handler and with the default one.
set(message "xquant: append, layer 0: x is \\[2, 12\\]; expected \\[tokens of the step, width\\] = \\[2, 16\\]\n")
execute_process(
  COMMAND "${COMPILER}" -std=c++20 -fno-exceptions -Wall -Wextra -Werror "-I${INCLUDE}" "${SOURCE}" -o "${PROGRAM}"
  RESULT_VARIABLE result
  ERROR_VARIABLE errors
)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${errors}")
endif()
execute_process(COMMAND "${PROGRAM}" handler RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
if(NOT result EQUAL 3 OR NOT output MATCHES "^handler: ${message}$" OR NOT errors STREQUAL "")
  message(FATAL_ERROR "with a handler: status ${result}\n${output}${errors}")
endif()
execute_process(COMMAND "${PROGRAM}" default RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
if(NOT result MATCHES "[Aa]bort" OR NOT output STREQUAL "" OR NOT errors MATCHES "^${message}")
  message(FATAL_ERROR "without a handler: status ${result}\n${output}${errors}")
endif()
