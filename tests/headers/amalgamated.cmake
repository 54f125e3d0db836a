# Makes the one header of tools/amalgamate with OPTIONS, twice: the texts must be equal. Then compiles PROGRAM with no other header of xquant
# in reach, and runs it. FOLDERS: those of Eigen and xxHash, if PROGRAM needs them.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${SCRATCH}")
set(header "${SCRATCH}/include/xquant/xquant.hpp")
run("${PYTHON}" "${SCRIPT}" ${OPTIONS} --output "${header}")
run("${PYTHON}" "${SCRIPT}" ${OPTIONS} --output "${SCRATCH}/again.hpp")
run("${CMAKE_COMMAND}" -E compare_files "${header}" "${SCRATCH}/again.hpp")

list(TRANSFORM FOLDERS PREPEND "-I")
run("${COMPILER}" -std=c++20 ${FLAGS} "-I${SCRATCH}/include" ${FOLDERS} "${PROGRAM}" -o "${SCRATCH}/program")
run("${SCRATCH}/program")
message("${output}")
