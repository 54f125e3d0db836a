# Headers and a config package. find_package(xquant) gives xquant::xquant; find_package(xquant COMPONENTS svd) looks for
# Eigen too and gives xquant::svd, and COMPONENTS persistence looks for xxHash and gives xquant::persistence.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# The package has no machine code in it, so it goes to the folder for such packages.
set(xquant_package_dir "${CMAKE_INSTALL_DATADIR}/cmake/xquant")

install(TARGETS xquant EXPORT xquantTargets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES ${xquant_svd_headers} DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xquant/projection")
install(FILES "${PROJECT_SOURCE_DIR}/include/xquant/persistence.hpp" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xquant")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/xquant/persistence" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/xquant")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/xquant" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.cuh")
install(EXPORT xquantTargets NAMESPACE xquant:: DESTINATION "${xquant_package_dir}")

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
  DESTINATION "${xquant_package_dir}"
)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
