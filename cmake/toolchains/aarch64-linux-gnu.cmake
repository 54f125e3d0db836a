# Cross-compiles for 64-bit Arm Linux by Debian's g++-aarch64-linux-gnu, and runs tests by qemu-aarch64 (package qemu-user).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR "qemu-aarch64;-L;/usr/aarch64-linux-gnu;-cpu;max")

set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

# Catch2's library is this machine's, and its header serves any. It lies beside the C library's headers for this machine,
# which must not be found, so that a folder of its own has a link to it.
set(xquant_headers "${CMAKE_BINARY_DIR}/host_headers")
if(EXISTS /usr/include/catch2/catch.hpp)
  file(MAKE_DIRECTORY "${xquant_headers}")
  file(CREATE_LINK /usr/include/catch2 "${xquant_headers}/catch2" SYMBOLIC)
  file(WRITE "${xquant_headers}/Catch2Config.cmake"
    "if(NOT TARGET Catch2::Catch2)
  add_library(Catch2::Catch2 INTERFACE IMPORTED)
  set_target_properties(Catch2::Catch2 PROPERTIES INTERFACE_INCLUDE_DIRECTORIES \"\${CMAKE_CURRENT_LIST_DIR}\")
endif()\n")
  set(Catch2_DIR "${xquant_headers}")
endif()
