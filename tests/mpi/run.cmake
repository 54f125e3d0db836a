# cmake -DMPIRUN=<mpirun> -DPROGRAM=<program> -DRANKS=<n> -DARGUMENTS=<words> -DSTATUS=<n> -DEXPECT=<regular expression> -P run.cmake:
# runs a program on n processes; it must end with this status, and print what the expression matches.
if(NOT EXISTS "${MPIRUN}")
  message("xquant: SKIPPED, no mpirun (package openmpi-bin): nothing shows that caches on several processes answer as one")
  return()
endif()
# Open MPI asks root, in containers too, to say twice that it is meant.
set(ENV{OMPI_ALLOW_RUN_AS_ROOT} 1)
set(ENV{OMPI_ALLOW_RUN_AS_ROOT_CONFIRM} 1)
set(ENV{OMPI_MCA_mpi_yield_when_idle} 1)  # ranks that wait leave the cores to those that compute
separate_arguments(ARGUMENTS)
execute_process(COMMAND "${MPIRUN}" --oversubscribe -n ${RANKS} "${PROGRAM}" ${ARGUMENTS}
  RESULT_VARIABLE result OUTPUT_VARIABLE printed ERROR_VARIABLE printed ECHO_OUTPUT_VARIABLE ECHO_ERROR_VARIABLE)
if(NOT result EQUAL STATUS)
  message(FATAL_ERROR "${PROGRAM} ${ARGUMENTS} on ${RANKS} processes ended with ${result}; expected ${STATUS}")
endif()
if(NOT printed MATCHES "${EXPECT}")
  message(FATAL_ERROR "${PROGRAM} ${ARGUMENTS} on ${RANKS} processes did not print: ${EXPECT}")
endif()
