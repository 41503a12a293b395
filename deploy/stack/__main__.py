"""python -m deploy.stack up [HOSTS] | down | status: a stack that stays until it is taken down."""

import json
import shutil
import sys
import time
from pathlib import Path

from deploy.stack import proc, room
from deploy.stack.stack import Stack

STATE = Path(__file__).parents[2] / ".state"
LEFT = STATE / "up.json"  # names the folder of the stack that runs


def up(hosts: int) -> int:
    if standing():
        print("It is up already; `make down` ends it.")
        return status()
    down()
    Stack(hosts=hosts, keep=True, record=LEFT).start()
    return status()


def down() -> int:
    """End every room by the pid that was written down, and remove the folder. Nothing up is fine."""
    if not LEFT.exists():
        print("Nothing is up.")
        return 0
    left = json.loads(LEFT.read_text())
    ended = [one["name"] for one in left["rooms"] if room.end_by_name(one)]
    shutil.rmtree(left["folder"], ignore_errors=True)
    LEFT.unlink()
    print(f"Ended {', '.join(ended) or 'nothing, it was gone'}; removed {left['folder']}.")
    return 0


def standing() -> bool:
    """Is the stack that was left running still there?"""
    if not LEFT.exists():
        return False
    left = json.loads(LEFT.read_text())
    return all(proc.born(one["pid"]) == one["born"] for one in left["rooms"])


def status() -> int:
    if not standing():
        print("Nothing is up.")
        return 1
    left = json.loads(LEFT.read_text())
    print(f"Up since {time.ctime(left['started'])}: {', '.join(one['name'] for one in left['rooms'])}")
    print(f"  export DRYSTONE_ADDRESS=http://{left['address']}")
    print(f"  export DRYSTONE_TOKEN_FILE={left['folder']}/token")
    print(f"  logs: {left['folder']}/*/log")
    return 0


def main(words: list[str]) -> int:
    match words:
        case ["up"]:
            return up(1)
        case ["up", hosts] if hosts.isdigit():
            return up(int(hosts))
        case ["down"]:
            return down()
        case ["status"]:
            return status()
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
