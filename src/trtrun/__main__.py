"""The entry of the command ``trtrun``, which knows what to do about Ctrl-C before anything else is imported."""

from __future__ import annotations

import sys
from typing import Any


def main() -> Any:
    """Run the command. Ctrl-C while its imports take their second is exit code 130, as it is later."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        return sys.exit(130)


if __name__ == "__main__":
    main()
