# cmake -DNM=<nm> -DFILE=<shared object> -DEXPECT=<a|b|..> -P exports.cmake
#
# A shared object of the runtime exports the symbols of EXPECT, and no other: what it defines besides can neither take
# the place of a program's function nor be replaced by one. Nor may it ask others for functions that are made of
# templates, such as members of std::vector, since a program's copies of these may have been compiled for another
# processor: all that it asks for has a symbol version of the C or C++ library.
if(NOT NM)
  message(FATAL_ERROR "no nm: set CMAKE_NM")
endif()
execute_process(COMMAND "${NM}" -D -C --defined-only "${FILE}" OUTPUT_VARIABLE defined COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND "${NM}" -D -C --undefined-only "${FILE}" OUTPUT_VARIABLE undefined COMMAND_ERROR_IS_FATAL ANY)
string(REGEX REPLACE "(^|\n)[0-9a-f]+ [A-Za-z] " "\\1" defined "${defined}")
# Parameters and list separators are in the way of a list of names.
string(REGEX REPLACE "[(;][^\n]*" "" defined "${defined}")
string(REGEX REPLACE "\n+$" "" defined "${defined}")
string(REPLACE "\n" ";" defined "${defined}")
string(REPLACE "|" ";" expected "${EXPECT}")
list(SORT defined)
list(SORT expected)
message("${FILE} exports: ${defined}")
if(NOT defined STREQUAL expected)
  message(FATAL_ERROR "expected: ${expected}")
endif()
string(REPLACE ";" "," undefined "${undefined}")
string(REPLACE "\n" ";" undefined "${undefined}")
foreach(line IN LISTS undefined)
  if(line AND NOT line MATCHES "@(GLIBC|GLIBCXX|CXXABI|GCC)_[0-9.]+$" AND NOT line MATCHES "^ +w (_ITM_|__gmon_start__)")
    message(FATAL_ERROR "it asks another object for: ${line}")
  endif()
  string(REGEX REPLACE "\\(.*" "" name "${line}")
  if(name MATCHES "std::(vector|__cxx11::basic_string<[^()]*>::|map|unique_ptr)")
    message(FATAL_ERROR "it asks another object for a function made of a template: ${line}")
  endif()
endforeach()
