# Compiles SOURCE without -DGOOD (must fail, with a message that matches MESSAGE) and, if GOOD is on, with it (must work).
string(REPLACE "|" ";" include "${INCLUDE}")
list(TRANSFORM include PREPEND "-I")

function(compile result_variable output_variable)
  execute_process(
    COMMAND "${COMPILER}" -std=c++20 ${include} ${ARGN} -fsyntax-only "${SOURCE}"
    RESULT_VARIABLE result
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output
  )
  set(${result_variable} "${result}" PARENT_SCOPE)
  set(${output_variable} "${output}" PARENT_SCOPE)
endfunction()

if(GOOD)
  compile(result output -DGOOD)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "the right use does not compile:\n${output}")
  endif()
  compile(result output)
else()
  compile(result output -Wfatal-errors)  # so that nothing more is instantiated
endif()
if(result EQUAL 0)
  message(FATAL_ERROR "the wrong use compiles")
endif()
if(NOT output MATCHES "${MESSAGE}")
  message(FATAL_ERROR "the message does not match \"${MESSAGE}\":\n${output}")
endif()
