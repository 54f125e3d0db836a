"""Conan 2 recipe for xquant. It packages the checkout it lies in; README.md of the folder above says how to use it."""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

required_conan_version = ">=2.0"


class XquantRecipe(ConanFile):
    name = "xquant"
    description = "Header-only C++20 library of quantized caches for transformer attention (XQuant)"
    license = "Apache-2.0"
    topics = ("transformer", "attention", "kv-cache", "quantization", "header-only")
    package_type = "header-library"
    implements = ["auto_header_only"]  # one package for all settings and options: the headers are all in it
    settings = "os", "arch", "compiler", "build_type"
    options = {"svd": [True, False], "persistence": [True, False]}
    default_options = {"svd": False, "persistence": False}
    options_description = {
        "svd": "projections and schemes that need an SVD: depends on eigen",
        "persistence": "saving sequences to files and loading them: depends on xxhash",
    }

    @property
    def _checkout(self):
        return Path(self.recipe_folder).parents[2]

    def set_version(self):
        text = load(self, self._checkout / "include/xquant/version.hpp")
        parts = (re.search(rf"XQUANT_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR", "PATCH"))
        self.version = ".".join(parts)

    def export_sources(self):
        for pattern in ("CMakeLists.txt", "LICENSE", "include/*", "cmake/*.cmake", "cmake/*.in"):
            copy(self, pattern, src=self._checkout, dst=self.export_sources_folder)

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        # The library's own headers include these, so their users' compilers need them, too.
        if self.options.svd:
            self.requires("eigen/[>=3.4 <6]", transitive_headers=True)
        if self.options.persistence:
            self.requires("xxhash/[>=0.8.1 <1]", transitive_headers=True)

    def validate(self):
        check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.user_presets_path = False
        for part in ("BUILD_TESTS", "BUILD_BENCH", "BUILD_EXAMPLES", "BUILD_RUNTIME", "CUDA"):
            toolchain.cache_variables[f"XQUANT_{part}"] = False
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        copy(self, "LICENSE", src=self.source_folder, dst=Path(self.package_folder) / "licenses")
        # Config files for CMake and pkg-config are made by Conan's generators, out of package_info.
        rmdir(self, Path(self.package_folder) / "share")

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "xquant")
        # Conan makes one more target, of all components. It would be called xquant::xquant, too, and bring Eigen along.
        self.cpp_info.set_property("cmake_target_name", "xquant::all")
        self._add_component("xquant", [])
        if self.options.svd:
            self._add_component("svd", ["xquant", "eigen::eigen"])
        if self.options.persistence:
            self._add_component("persistence", ["xquant", "xxhash::xxhash"])

    def _add_component(self, name, requires):
        component = self.cpp_info.components[name]
        component.set_property("cmake_target_name", f"xquant::{name}")
        component.set_property("pkg_config_name", "xquant" if name == "xquant" else f"xquant-{name}")
        component.requires = requires
        component.bindirs = []
        component.libdirs = []
