# What hook.py includes in llama.cpp's src/CMakeLists.txt: the adapter is part of the library llama.
set(xquant_adapter "${CMAKE_CURRENT_LIST_DIR}")
set(XQUANT_ADAPTER_FLAGS "-O3;-march=native" CACHE STRING "Flags that choose the kernels of xquant")
find_path(XQUANT_EIGEN_INCLUDE Eigen/Core PATH_SUFFIXES eigen3 REQUIRED)
find_path(XQUANT_XXHASH_INCLUDE xxhash.h REQUIRED)

foreach(name adapter batch caches describe memory rope rows settings trace weights)
  list(APPEND xquant_adapter_sources "${xquant_adapter}/${name}.cpp")
endforeach()
target_sources(llama PRIVATE ${xquant_adapter_sources})
target_include_directories(llama PRIVATE "${xquant_adapter}")
# The library's headers are a system's to llama.cpp, whose flags would warn of them.
target_include_directories(llama SYSTEM PRIVATE
  "${xquant_adapter}/../../include" "${xquant_adapter}/.." "${XQUANT_EIGEN_INCLUDE}" "${XQUANT_XXHASH_INCLUDE}"
)
set_source_files_properties(${xquant_adapter_sources} PROPERTIES
  COMPILE_OPTIONS "-std=c++20;${XQUANT_ADAPTER_FLAGS}"
  SKIP_UNITY_BUILD_INCLUSION ON
)
