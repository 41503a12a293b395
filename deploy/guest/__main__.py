"""python -m deploy.guest build | check SERIAL_LOG IMAGE..."""

import sys
from pathlib import Path

from deploy.guest import image, model


def main(words: list[str]) -> int:
    if words[:1] == ["build"]:
        made = image.build()
        print(f"kernel {made.kernel}\ninitrd {made.initrd}")
        return 0
    if words[:1] == ["check"] and len(words) >= 3:
        acks = model.read_log(Path(words[1]))
        results = [model.check_image(acks, disk, Path(leaf)) for disk, leaf in enumerate(words[2:])]
        print("\n".join(result.summary() for result in results))
        return 0 if all(result.ok for result in results) else 1
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
