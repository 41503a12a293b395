"""Definitions for a real broker; passwords are made here and put into files that only root may read.

python -m deploy.rabbitmq services FOLDER          users of inventory, snapshots and gateway
python -m deploy.rabbitmq agent HOST_ID FOLDER     the user of one host's agent

FOLDER gets definitions.json (give it to `rabbitmqctl import_definitions`, then delete it) and one file for each user
with its DRYSTONE_AMQP_URI line, to complete with the broker's address and copy to /etc/drystone on its machine.
"""

import json
import os
import secrets
import sys
import uuid
from pathlib import Path
from typing import Any

from deploy.rabbitmq import users

PLACE = "BROKER:5672"  # the administrator knows where it is, we don't


def write(folder: Path, made: dict[str, Any], passwords: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _private(folder / "definitions.json", json.dumps(made, indent=1) + "\n")
    for user, password in passwords.items():
        _private(folder / f"{user}.env", f"DRYSTONE_AMQP_URI=amqp://{user}:{password}@{PLACE}//\n")
    print(f"{folder}: definitions.json and {', '.join(f'{user}.env' for user in passwords)}")


def _private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def main(words: list[str]) -> int:
    match words:
        case ["services", folder]:
            passwords = {name: secrets.token_urlsafe(24) for name in users.SERVICES}
            write(Path(folder), users.definitions(passwords, {}), passwords)
        case ["agent", host_id, folder]:
            if str(uuid.UUID(host_id)) != host_id:
                raise SystemExit(f"{host_id}: a host id is a UUID in lower case")
            password = secrets.token_urlsafe(24)
            write(Path(folder), users.definitions({}, {host_id: password}), {users.agent_user(host_id): password})
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
