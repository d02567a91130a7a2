"""libxformers_profiler, which is C++ without torch: what operators cost, the analysis of traces, reports."""

import ctypes
import functools
import json
from typing import Any

from ._cpp_lib import _PACKAGE


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_PACKAGE / "libxformers_profiler.so"))
    library.xformers_profiler_call.argtypes = [ctypes.c_char_p]
    library.xformers_profiler_call.restype = ctypes.c_void_p
    library.xformers_profiler_free.argtypes = [ctypes.c_void_p]
    return library


def call(function: str, **arguments: Any) -> Any:
    """Calls a function of xformers/profiler/c_api.h. ValueError says what was wrong."""
    library = _library()
    result = library.xformers_profiler_call(json.dumps({"function": function, **arguments}).encode())
    try:
        reply = json.loads(ctypes.string_at(result))
    finally:
        library.xformers_profiler_free(result)
    if "error" in reply:
        raise ValueError(reply["error"])
    return reply["result"]
