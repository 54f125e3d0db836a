# cmake -DPROGRAM=<program> -DEXPECT=runs|dies [-DQEMU=<qemu-x86_64>] -P mixed.cmake
#
# Runs a program on an emulated processor of 2008, which has neither AVX nor AVX-512 (Nehalem), and compares how it
# ended with what docs/embedding.md says: `runs`, with the right answers, or `dies`, of SIGILL.
if(NOT QEMU)
  message("xquant: SKIPPED, no qemu-x86_64 (package qemu-user): nothing shows what mixed instruction sets do on an old processor")
  return()
endif()
execute_process(COMMAND "${QEMU}" -cpu Nehalem "${PROGRAM}"
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
# A signal is a word to CMake; a shell in between makes it 128 + 4.
if(result STREQUAL "0")
  set(ended runs)
elseif(result MATCHES "^(Illegal instruction|132)$" OR output MATCHES "uncaught target signal 4")
  set(ended dies)
else()
  set(ended "ended otherwise")
endif()
message("${PROGRAM} ${ended} on a Nehalem (${result})\n${output}")
if(NOT ended STREQUAL EXPECT)
  message(FATAL_ERROR
    "expected that it ${EXPECT}. docs/embedding.md (\"Two instruction sets in one program\") says so, and would be wrong: change the "
    "page together with this test.")
endif()
