# cmake -DPROGRAM=<program> [-DARGUMENTS=<a|b>] [-DLEVEL=<level>] [-DEXPECT_BEST=ON] [-DQEMU=<qemu-x86_64>]
#   [-DCPU=<model>] [-DQUESTION=<runtime_operations>] [-DLIBRARIES=<folder>] -P run.cmake
#
# Runs a program that uses the runtime.
#   LEVEL        XQUANT_ISA is set to it. Skipped, loudly, where this processor lacks instructions of it, which
#                QUESTION prints. QEMU emulates no AVX-512, so the last level runs on a machine that has it or nowhere.
#   EXPECT_BEST  --level and the best level of this machine are added to the arguments: what the kernel says of its
#                processor decides.
#   CPU          the program runs on that processor, emulated by QEMU. Skipped, loudly, without one, or with one that
#                is older than AVX2 in QEMU where the processor has it.
#   LIBRARIES    a folder in which shared objects are looked for
if(DEFINED CPU AND NOT QEMU)
  message("xquant: SKIPPED, no qemu-x86_64 (package qemu-user): nothing shows what the runtime does on an old processor (${CPU})")
  return()
endif()
if("${CPU}" STREQUAL "Haswell")
  execute_process(COMMAND "${QEMU}" --version OUTPUT_VARIABLE version)
  if(NOT version MATCHES "version ([0-9.]+)" OR CMAKE_MATCH_1 VERSION_LESS 7.2)
    message("xquant: SKIPPED, QEMU emulates AVX2 since 7.2: nothing shows what the runtime does on a Haswell\n${version}")
    return()
  endif()
endif()
string(REPLACE "|" ";" ARGUMENTS "${ARGUMENTS}")
set(command "${PROGRAM}" ${ARGUMENTS})
if(EXPECT_BEST)
  file(STRINGS /proc/cpuinfo flags REGEX "^flags" LIMIT_COUNT 1)
  set(best x86-64)
  if(flags MATCHES " avx2( |$)" AND flags MATCHES " fma( |$)" AND flags MATCHES " f16c( |$)" AND flags MATCHES " bmi2( |$)")
    set(best x86-64-v3)
    if(flags MATCHES " avx512f( |$)" AND flags MATCHES " avx512bw( |$)" AND flags MATCHES " avx512dq( |$)"
        AND flags MATCHES " avx512vl( |$)" AND flags MATCHES " avx512_vnni( |$)")
      set(best x86-64-v4)
    endif()
  endif()
  list(APPEND command --level ${best})
endif()
if(LEVEL)
  execute_process(COMMAND "${QUESTION}" --missing "${LEVEL}" RESULT_VARIABLE result OUTPUT_VARIABLE missing ERROR_VARIABLE errors)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${QUESTION} --missing ${LEVEL}: ${result} ${errors}")
  endif()
  if(missing)
    message("xquant: SKIPPED, this processor cannot run level ${LEVEL}: it lacks ${missing} (and QEMU emulates no AVX-512)")
    return()
  endif()
  set(ENV{XQUANT_ISA} "${LEVEL}")
endif()
if(LIBRARIES)
  set(ENV{LD_LIBRARY_PATH} "${LIBRARIES}")
endif()
if(DEFINED CPU)
  list(PREPEND command "${QEMU}" -cpu "${CPU}")
endif()
execute_process(COMMAND ${command} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
list(JOIN command " " command)
# The emulator warns of what it leaves out of a processor.
string(REGEX REPLACE "[^\n]*TCG doesn't support requested feature[^\n]*\n" "" errors "${errors}")
message("${command}\n${output}${errors}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "it ended with: ${result}")
endif()
