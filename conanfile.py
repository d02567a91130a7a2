"""Conan 2: the kernels, which need no framework. `conan create .` builds them and a program against them.

The operators are not packaged: they belong to the LibTorch of a program, which Conan does not have as PyTorch makes it.
"""

import re
from pathlib import Path

from conan import ConanFile
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout


class XformersKernels(ConanFile):
    name = "xformers-kernels"
    description = "Memory-efficient transformer kernels without a framework"
    license = "BSD-3-Clause"
    package_type = "shared-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"cpu_isas": ["all", "host", "ANY"]}
    default_options = {"cpu_isas": "all"}
    exports_sources = ("CMakeLists.txt", "LICENSE", "cmake/*", "python/xformers/version.py", "xformers/kernels/*")
    test_package_folder = "tests/install/conan_package"

    def set_version(self):
        text = (Path(self.recipe_folder) / "python/xformers/version.py").read_text()
        self.version = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE).group(1)

    def export(self):
        # A recipe reads its version where it lies, also after it was exported.
        target = Path(self.export_folder) / "python/xformers/version.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((Path(self.recipe_folder) / "python/xformers/version.py").read_text())

    def layout(self):
        cmake_layout(self)

    def generate(self):
        toolchain = CMakeToolchain(self)
        toolchain.user_presets_path = False  # CMakePresets.json is the repository's own
        for name, value in {
            "XFORMERS_OPS": "OFF",
            "XFORMERS_DEVELOPER": "OFF",
            "XFORMERS_CUDA": "OFF",
            "XFORMERS_SONAMES": "ON",
            "XFORMERS_CPU_ISAS": str(self.options.cpu_isas),
        }.items():
            toolchain.cache_variables[name] = value
        toolchain.generate()

    def build(self):
        cmake = CMake(self)
        cmake.configure()
        cmake.build()

    def package(self):
        CMake(self).install(component="kernels")

    def package_info(self):
        # The installed find_package(xformers COMPONENTS kernels) is the one that consumers use.
        self.cpp_info.set_property("cmake_find_mode", "none")
        self.cpp_info.builddirs = ["lib/cmake/xformers"]
        self.cpp_info.libs = ["xformers_kernels", "xformers_attention_kernels"]
