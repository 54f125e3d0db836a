# A port that installs the checkout it lies in. A port outside the repository replaces the next line by vcpkg_from_github, with the address of
# a release.
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

set(VCPKG_BUILD_TYPE release)  # a debug build would install equal headers

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DXQUANT_BUILD_TESTS=OFF
    -DXQUANT_BUILD_BENCH=OFF
    -DXQUANT_BUILD_EXAMPLES=OFF
    -DXQUANT_BUILD_RUNTIME=OFF
    -DXQUANT_CUDA=OFF
    -DXQUANT_INSTALL=ON
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/xquant)
vcpkg_fixup_pkgconfig()

# vcpkg keeps the license as share/xquant/copyright.
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/doc")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
