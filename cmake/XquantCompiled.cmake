# xquant_compiled_<what>: what several of our own programs use is compiled once.
#
#   best      caches of the best backend, the schemes that have a name, and (where Eigen was found) the SVD: whoever links it
#             leaves Eigen and the schemes out
#   scalar    caches of the scalar backend
#   emulated  caches on a GPU in plain C++
#   cuda      caches on a GPU (where nvcc was found)
function(xquant_compiled what folder)
  list(TRANSFORM ARGN PREPEND "${PROJECT_SOURCE_DIR}/${folder}/" OUTPUT_VARIABLE sources)
  add_library(xquant_compiled_${what} STATIC EXCLUDE_FROM_ALL ${sources})
  target_include_directories(xquant_compiled_${what} PUBLIC "${PROJECT_SOURCE_DIR}/examples" "${PROJECT_SOURCE_DIR}/tests")
  target_link_libraries(xquant_compiled_${what} PUBLIC xquant::xquant PRIVATE xquant_build_flags)
endfunction()

xquant_compiled(best examples/compiled best.cpp registry.cpp)
target_compile_definitions(xquant_compiled_best INTERFACE XQUANT_REGISTRY_COMPILED=1)
if(TARGET xquant::svd)
  target_sources(xquant_compiled_best PRIVATE "${PROJECT_SOURCE_DIR}/examples/compiled/svd.cpp")
  target_link_libraries(xquant_compiled_best PUBLIC xquant::svd)
  target_compile_definitions(xquant_compiled_best PUBLIC XQUANT_SVD_COMPILED=1)
endif()

xquant_compiled(scalar tests/support/compiled scalar.cpp)
xquant_compiled(emulated tests/support/compiled emulated.cpp)
# Kernels in plain C++ are large, and -O3 takes five times as long as -O2 for nothing.
target_compile_options(xquant_compiled_emulated PRIVATE $<$<CONFIG:Release>:-O2>)

if(TARGET xquant_cuda_flags AND TARGET xquant::svd)
  xquant_compiled(cuda tests/support/compiled cuda.cu)
  target_compile_definitions(xquant_compiled_cuda PUBLIC XQUANT_SVD_COMPILED=1)
  target_link_libraries(xquant_compiled_cuda PUBLIC xquant_cuda_flags xquant::svd)
endif()
