"""What a user did wrong, as one sentence."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """One sentence: what came, what was expected, how to fix it."""


def program(main: Callable[[], int | None]) -> None:
    """Runs `main` and ends the process with its exit code; a UserError is its sentence on standard error and code 1."""
    try:
        code = main()
    except UserError as error:
        sys.exit(f"{sys.argv[0].rpartition('/')[2]}: {error}")
    except KeyboardInterrupt:
        code = 130
    sys.exit(code or 0)
