# cmake -DLD=<ld> -DOBJCOPY=<objcopy> -DAR=<ar> -DFOLDER=<scratch> -DINTERFACE=<object> -DLEVELS=<object|object> -DARCHIVE=<libxquant.a>
#   -P archive.cmake
#
# libxquant.a: the C interface and all levels in one object that shows the functions of xquant.h and nothing else. Weak functions of the
# standard library are in every level, compiled for its processor; a linker that saw them by their names would keep one for all. So the
# levels' symbols become local, one level at a time, before the levels meet.
string(REPLACE "|" ";" LEVELS "${LEVELS}")
file(MAKE_DIRECTORY "${FOLDER}")
set(parts "${INTERFACE}")
set(i 0)
foreach(level IN LISTS LEVELS)
  set(part "${FOLDER}/level_${i}.o")
  execute_process(COMMAND "${LD}" -r --force-group-allocation -o "${part}" "${level}" COMMAND_ERROR_IS_FATAL ANY)
  set(entry xquant_runtime_level_${i})
  execute_process(COMMAND "${OBJCOPY}" --redefine-sym xquant_runtime_level=${entry} --keep-global-symbol=${entry} "${part}"
    COMMAND_ERROR_IS_FATAL ANY)
  list(APPEND parts "${part}")
  math(EXPR i "${i} + 1")
endforeach()
execute_process(COMMAND "${LD}" -r --force-group-allocation -o "${FOLDER}/xquant.o" ${parts} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${OBJCOPY}" --wildcard --keep-global-symbol=xq_* "${FOLDER}/xquant.o" COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE "${ARCHIVE}")
execute_process(COMMAND "${AR}" rcs "${ARCHIVE}" "${FOLDER}/xquant.o" COMMAND_ERROR_IS_FATAL ANY)
