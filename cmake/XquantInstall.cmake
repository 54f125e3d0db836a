# Headers, a config package, and a file for pkg-config. find_package(xquant) gives xquant::xquant; find_package(xquant COMPONENTS
# svd) looks for Eigen too and gives xquant::svd, and COMPONENTS persistence looks for xxHash and gives xquant::persistence.
# pkg-config --cflags xquant gives the headers' folder. Where the runtime is built, its shared objects are the install
# component `runtime`, and find_package(xquant COMPONENTS runtime) gives xquant::runtime; likewise libxquant, component `c`.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The headers' package has no machine code in it, so it goes to the folder for such packages. The runtime is an addition to it.
set(xquant_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/xquant")

install(TARGETS xquant EXPORT xquantTargets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
foreach(header IN LISTS xquant_svd_headers xquant_runtime_headers)
  cmake_path(RELATIVE_PATH header BASE_DIRECTORY "${PROJECT_SOURCE_DIR}/include" OUTPUT_VARIABLE place)
  cmake_path(GET place PARENT_PATH folder)
  install(FILES "${header}" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/${folder}")
endforeach()
install(FILES "${PROJECT_SOURCE_DIR}/include/xquant/persistence.hpp" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xquant")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/xquant/persistence" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xquant")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/xquant" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.cuh")
install(EXPORT xquantTargets NAMESPACE xquant:: DESTINATION "${xquant_package_dir}")
if(TARGET xquant_runtime)
  # The loader looks for levels in its own folder.
  install(TARGETS xquant_runtime EXPORT xquantRuntimeTargets
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT runtime NAMELINK_COMPONENT runtime_dev)
  install(TARGETS ${xquant_runtime_level_targets} LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT runtime)
  install(EXPORT xquantRuntimeTargets NAMESPACE xquant:: DESTINATION "${xquant_package_dir}" COMPONENT runtime_dev)
endif()

if(TARGET xquant_c)
  # It loads the levels of component `runtime`, from its own folder as well.
  install(TARGETS xquant_c EXPORT xquantCTargets
    LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT c NAMELINK_COMPONENT c_dev
    INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(FILES "${PROJECT_SOURCE_DIR}/include/xquant/xquant.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xquant" COMPONENT c_dev)
  install(EXPORT xquantCTargets NAMESPACE xquant:: DESTINATION "${xquant_package_dir}" COMPONENT c_dev)
  if(TARGET xquant_c_archive)
    install(FILES "${xquant_runtime_folder}/libxquant.a" DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT c_dev)
  endif()
endif()

configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/xquantConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/xquantConfig.cmake"
  INSTALL_DESTINATION "${xquant_package_dir}"
  NO_SET_AND_CHECK_MACRO
)
# Before 1.0 a new minor version may change the interface.
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/xquantConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion
  ARCH_INDEPENDENT
)
install(
  FILES "${PROJECT_BINARY_DIR}/xquantConfig.cmake" "${PROJECT_BINARY_DIR}/xquantConfigVersion.cmake"
    "${PROJECT_SOURCE_DIR}/cmake/XquantWarnScalar.cmake"
  DESTINATION "${xquant_package_dir}"
)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")

# For builds without CMake: share/pkgconfig/xquant.pc. A prefix counted from the folder of this file lets the installed tree be moved; an
# absolute CMAKE_INSTALL_DATADIR may lie anywhere, and gets the prefix as it is.
set(xquant_pc_dir "${CMAKE_INSTALL_DATADIR}/pkgconfig")
if(IS_ABSOLUTE "${CMAKE_INSTALL_DATADIR}")
  set(xquant_pc_prefix "${CMAKE_INSTALL_PREFIX}")
else()
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}/${xquant_pc_dir}" OUTPUT_VARIABLE xquant_pc_prefix)
  string(PREPEND xquant_pc_prefix "\${pcfiledir}/")
endif()
set(xquant_pc_includedir "\${prefix}")
cmake_path(APPEND xquant_pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")  # an absolute one replaces ${prefix}
configure_file("${PROJECT_SOURCE_DIR}/cmake/xquant.pc.in" "${PROJECT_BINARY_DIR}/xquant.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/xquant.pc" DESTINATION "${xquant_pc_dir}")

# pkg-config --cflags --libs libxquant: the C interface. It lies beside the library, whose folder depends on the processor.
if(TARGET xquant_c AND NOT IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" AND NOT IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_LIBDIR}/pkgconfig"
    OUTPUT_VARIABLE xquant_c_prefix)
  configure_file("${PROJECT_SOURCE_DIR}/cmake/libxquant.pc.in" "${PROJECT_BINARY_DIR}/libxquant.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/libxquant.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT c_dev)
endif()
