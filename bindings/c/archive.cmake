# cmake -DLD=<ld> -DOBJCOPY=<objcopy> -DAR=<ar> -DFOLDER=<scratch> -DINTERFACE=<object> -DLEVELS=<object|object> -DARCHIVE=<libxquant.a>
#   -P archive.cmake
#
# libxquant.a: the C interface and all levels in one object that shows the functions of xquant.h and nothing else. Weak functions of the
# standard library are in every level, compiled for its processor; a linker that saw them by their names would keep one for all. So the
# levels' symbols become local, one level at a time, before the levels meet.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}: ${result}\n${output}")
  endif()
endfunction()

string(REPLACE "|" ";" LEVELS "${LEVELS}")
file(MAKE_DIRECTORY "${FOLDER}")
set(parts "${INTERFACE}")
set(i 0)
foreach(level IN LISTS LEVELS)
  set(part "${FOLDER}/level_${i}.o")
  run("${LD}" -r --force-group-allocation -o "${part}" "${level}")
  run("${OBJCOPY}" --redefine-sym xquant_runtime_level=xquant_runtime_level_${i} --keep-global-symbol=xquant_runtime_level_${i} "${part}")
  list(APPEND parts "${part}")
  math(EXPR i "${i} + 1")
endforeach()
run("${LD}" -r --force-group-allocation -o "${FOLDER}/xquant.o" ${parts})
run("${OBJCOPY}" --wildcard --keep-global-symbol=xq_* "${FOLDER}/xquant.o")
file(REMOVE "${ARCHIVE}")
run("${AR}" rcs "${ARCHIVE}" "${FOLDER}/xquant.o")
