# Compiles SOURCE with -DGOOD (must work) and without (must fail, with a message that matches MESSAGE).
function(compile result_variable output_variable)
  execute_process(
    COMMAND "${COMPILER}" -std=c++20 "-I${INCLUDE}" ${ARGN} -c "${SOURCE}" -o /dev/null
    RESULT_VARIABLE result
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output
  )
  set(${result_variable} "${result}" PARENT_SCOPE)
  set(${output_variable} "${output}" PARENT_SCOPE)
endfunction()

compile(result output -DGOOD)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the right use does not compile:\n${output}")
endif()
compile(result output)
if(result EQUAL 0)
  message(FATAL_ERROR "the wrong use compiles")
endif()
if(NOT output MATCHES "${MESSAGE}")
  message(FATAL_ERROR "the message does not match \"${MESSAGE}\":\n${output}")
endif()
