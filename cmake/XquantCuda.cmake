# xquant_cuda_flags: what our own CUDA programs are compiled with. There where XQUANT_CUDA is on and nvcc is found; no GPU is
# needed to compile. Users compile cuda.cuh with --expt-relaxed-constexpr and C++20 themselves.
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "xquant: nvcc not found, CUDA kernels are not compiled (their tests on an emulated GPU run)")
  return()
endif()

# For the GPU that is here. Where there is none, one architecture will do: compiling the kernels takes four minutes for each. tools/test
# --full names both that the kernels were written for.
execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE xquant_gpu OUTPUT_QUIET ERROR_QUIET)
if(xquant_gpu STREQUAL "0")
  set(CMAKE_CUDA_ARCHITECTURES native CACHE STRING "GPUs that our own CUDA programs are compiled for")
else()
  set(CMAKE_CUDA_ARCHITECTURES 90-real CACHE STRING "GPUs that our own CUDA programs are compiled for")
endif()
if(NOT DEFINED CMAKE_CUDA_COMPILER_LAUNCHER AND XQUANT_CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${XQUANT_CCACHE}")
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

add_library(xquant_cuda_flags INTERFACE)
target_link_libraries(xquant_cuda_flags INTERFACE xquant::xquant CUDA::cudart_static)
target_compile_options(xquant_cuda_flags INTERFACE
  # -std: CMake 3.25 does not know the standards of nvcc 13.
  $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20 --expt-relaxed-constexpr>)
