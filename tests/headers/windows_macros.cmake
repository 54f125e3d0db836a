# Every header, behind the macros of <windows.h>. What is not the library's own is included before them.
file(GLOB_RECURSE headers RELATIVE "${INCLUDE}" "${INCLUDE}/xquant/*.hpp" "${INCLUDE}/xquant/backend/cuda/device/*.cuh"
  "${INCLUDE}/xquant/backend/cuda/kernels/*.cuh" "${INCLUDE}/xquant/core/device/*.cuh")
list(FILTER headers EXCLUDE REGEX "(runtime/(level|loader)|registry_svd|svd_basis)\\.hpp")  # need macros, or Eigen
set(others "")
foreach(header IN LISTS headers)
  file(STRINGS "${INCLUDE}/${header}" lines REGEX "^#include <")
  list(APPEND others ${lines})
endforeach()
list(FILTER others EXCLUDE REGEX "<xquant/")
list(FILTER others EXCLUDE REGEX "<(Eigen|cpuid|immintrin|arm_neon)")
list(REMOVE_DUPLICATES others)
list(TRANSFORM headers REPLACE "(.+)" "#include <\\1>")
list(JOIN others "\n" others)
list(JOIN headers "\n" headers)
file(WRITE "${SOURCE}" "#define XQUANT_SVD_COMPILED
#define XXH_INLINE_ALL
${others}
#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define near
#define far
#define IN
#define OUT
#define small char
#define interface struct
#define ERROR 0
#define DELETE (0x00010000L)

${headers}
")
list(TRANSFORM FOLDERS PREPEND "-I")
execute_process(
  COMMAND "${COMPILER}" -std=c++20 ${FLAGS} "-I${INCLUDE}" ${FOLDERS} -fsyntax-only "${SOURCE}"
  RESULT_VARIABLE result
  ERROR_VARIABLE errors
)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${errors}")
endif()
