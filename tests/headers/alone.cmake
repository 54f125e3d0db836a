# cmake -DCOMPILER=<c++> -DINCLUDE=<include/> -DFOLDERS=<folder;...> -DJOBS=<n> -DLIST=<file> -P alone.cmake: every header compiles as the only one of a
# file. Those of the runtime's shared objects, which need a macro, are left out.
file(GLOB_RECURSE headers RELATIVE "${INCLUDE}" "${INCLUDE}/*.hpp")
list(REMOVE_ITEM headers xquant/runtime/level.hpp xquant/runtime/loader.hpp)
list(LENGTH headers count)
if(count LESS 100)
  message(FATAL_ERROR "${INCLUDE} has ${count} headers; expected all of them")
endif()
list(REMOVE_ITEM FOLDERS /usr/include)  # searched anyway; named, it would come before the compiler's own folders
list(TRANSFORM FOLDERS PREPEND "-isystem")
list(JOIN headers "\n" lines)
file(WRITE "${LIST}" "${lines}\n")
execute_process(
  COMMAND xargs -P ${JOBS} -I {} "${COMPILER}" -std=c++20 -fsyntax-only -w "-I${INCLUDE}" ${FOLDERS} -include {} -x c++ /dev/null
  INPUT_FILE "${LIST}"
  RESULT_VARIABLE result
  ERROR_VARIABLE errors)
if(NOT result EQUAL 0 OR errors)
  message(FATAL_ERROR "a header does not compile alone:\n${errors}")
endif()
message("${count} headers compile alone")
