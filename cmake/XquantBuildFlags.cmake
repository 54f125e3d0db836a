# xquant_build_flags: what our own tests, benchmarks and examples are compiled with. Never part of xquant::xquant, never
# installed.
add_library(xquant_build_flags INTERFACE)
set(cxx "$<$<COMPILE_LANGUAGE:CXX>")  # nvcc has flags of its own

if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  target_compile_options(xquant_build_flags INTERFACE ${cxx}:-Wall> ${cxx}:-Wextra> ${cxx}:-Wshadow> ${cxx}:-Wconversion>)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # clang counts it to -Wconversion, g++ does not.
    target_compile_options(xquant_build_flags INTERFACE ${cxx}:-Wno-sign-conversion>)
  endif()
  if(XQUANT_WERROR)
    target_compile_options(xquant_build_flags INTERFACE ${cxx}:-Werror>)
  endif()
  if(XQUANT_NATIVE)
    target_compile_options(xquant_build_flags INTERFACE ${cxx}:-march=native>)
  endif()
  if(XQUANT_SANITIZE)
    set(xquant_sanitizer_flags -fsanitize=${XQUANT_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    if(XQUANT_SANITIZE MATCHES "address")
      # AddressSanitizer stops at accesses through null and outside of objects, too; UndefinedBehaviorSanitizer's own checks of these
      # make up two fifths of the compiler's time.
      list(APPEND xquant_sanitizer_flags -fno-sanitize=null,object-size,pointer-overflow,vptr)
    endif()
    target_compile_options(xquant_build_flags INTERFACE ${xquant_sanitizer_flags})
    target_link_options(xquant_build_flags INTERFACE ${xquant_sanitizer_flags})
  endif()
elseif(XQUANT_NATIVE OR XQUANT_SANITIZE OR XQUANT_WERROR)
  message(FATAL_ERROR "XQUANT_NATIVE, XQUANT_SANITIZE and XQUANT_WERROR know g++ and clang++ only")
endif()

if(XQUANT_FORCE_SCALAR)
  target_compile_definitions(xquant_build_flags INTERFACE XQUANT_FORCE_SCALAR=1)
endif()

# xquant_uses_intrinsics(<source> ...): sources that include Eigen or xxHash themselves. g++ 12 says of its own AVX-512 intrinsics that they
# use what is uninitialized, wherever they are inlined; the library's headers, which include both, do not let it.
function(xquant_uses_intrinsics)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-Wno-maybe-uninitialized;-Wno-uninitialized")
  endif()
endfunction()
