"""Upstream's warning about components, for those who want to hear it: XFORMERS_DEPRECATION_WARNINGS=1."""

import os
import warnings


def warn_deprecated(name: str, stacklevel: int = 3) -> None:
    """FutureWarning where XFORMERS_DEPRECATION_WARNINGS is 1; here the components are maintained, so else nothing."""
    if os.environ.get("XFORMERS_DEPRECATION_WARNINGS") == "1":
        warnings.warn(
            f"{name} is deprecated in xFormers since 0.0.22 (this library maintains it; "
            "XFORMERS_DEPRECATION_WARNINGS=1 asked for this warning)",
            FutureWarning,
            stacklevel=stacklevel,
        )


__all__ = ["warn_deprecated"]
