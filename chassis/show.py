"""`python -m chassis.show services.inventory.settings` prints the settings that this process would start with."""

from __future__ import annotations

import importlib
import os
import sys

from chassis import settings


def lines(module: str) -> list[str]:
    """One line per setting of the class that the module defines. Raises BadSettings."""
    found = vars(importlib.import_module(module)).values()
    own = [kind for kind in found if isinstance(kind, type) and issubclass(kind, settings.FrameSettings)]
    chosen = next(kind for kind in own if kind.__module__ == module)
    return settings.show(settings.load(chosen, os.environ))


def main() -> None:
    try:
        sys.stdout.write("\n".join(lines(sys.argv[1])) + "\n")
    except settings.BadSettings as faults:
        sys.exit(str(faults))


if __name__ == "__main__":
    main()
