"""The version; CMake and the wheel read it here."""

# Of this package, which counts on its own.
__version__ = "0.1.0"
__compat_version__ = "0.0.28"  # names and behaviour follow this version of the Python API
