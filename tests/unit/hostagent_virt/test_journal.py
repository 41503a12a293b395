"""What the hypervisor process remembers survives a SIGKILL at any moment, whole."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from contracts import errors
from services.hostagent import claims
from services.hostagent.journal import Journal

DISK = "dddddddd-0000-4000-8000-000000000001"
FLOW, OTHER = "f1", "f2"
WRITER = """
import sys
from pathlib import Path
from services.hostagent.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(1_000_000):
    journal.put("pauses", "vm", {"number": number, "filling": "x" * 3000})
    print(number, flush=True)
"""


def claim(number: int, flow: str = FLOW) -> dict:
    return {"flow_id": flow, "number": number}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.json")


def test_what_was_written_is_there_after_a_sigkill(tmp_path: Path) -> None:
    file = tmp_path / "journal.json"
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(random.uniform(0.01, 0.1))  # noqa: S311
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        remembered = Journal(file).get("pauses", "vm")["number"]
        assert remembered >= int(said[-1]) if said else remembered >= 0


def test_an_entry_goes_when_it_is_set_to_none(journal: Journal) -> None:
    journal.put("pauses", "vm", {"a": 1})
    journal.put("pauses", "vm", None)
    assert journal.all("pauses") == {}


def test_what_was_got_is_a_copy(journal: Journal) -> None:
    journal.put("jobs", DISK, {"a": [1]})
    journal.get("jobs", DISK)["a"].append(2)
    assert journal.get("jobs", DISK) == {"a": [1]}


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gone" / "journal.json")
    with pytest.raises(FileNotFoundError):
        journal.put("jobs", DISK, {"a": 1})
    assert journal.all("jobs") == {}


def test_a_journal_that_cannot_be_read_stops_the_agent(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_text('{"pauses": {')
    with pytest.raises(json.JSONDecodeError):
        Journal(tmp_path / "journal.json")


def test_a_lower_claim_is_refused_and_a_higher_one_remembered(tmp_path: Path, journal: Journal) -> None:
    claims.take(journal, DISK, claim(2))
    claims.take(journal, DISK, claim(2))
    with pytest.raises(errors.StaleClaim) as stale:
        claims.take(journal, DISK, claim(1))
    assert stale.value.fields == {"claim": 1, "highest": 2, "disk_id": DISK}
    with pytest.raises(errors.StaleClaim):
        claims.take(Journal(tmp_path / "journal.json"), DISK, claim(1))


def test_flows_do_not_disturb_each_other(journal: Journal) -> None:
    claims.take(journal, DISK, claim(9))
    claims.take(journal, DISK, claim(1, OTHER))
    claims.take(journal, "another disk", claim(1))


def test_an_ask_older_than_a_cancel_is_refused_and_a_look_is_not(journal: Journal) -> None:
    claims.take(journal, DISK, claim(3))
    claims.cancel(journal, DISK, claim(3))
    with pytest.raises(errors.StaleClaim):
        claims.take(journal, DISK, claim(3))
    claims.raise_to(journal, DISK, claim(3))
    claims.take(journal, DISK, claim(4))


def test_a_claim_that_comes_second_is_refused_whoever_looked_first(journal: Journal) -> None:
    """Compared and raised in one step: of many at once only the highest may go on afterwards."""
    passed, start = [], threading.Barrier(16)

    def ask(number: int) -> None:
        start.wait()
        with contextlib.suppress(errors.StaleClaim):
            claims.raise_to(journal, DISK, claim(number))
            passed.append((number, journal.get("claims", DISK)[FLOW]["number"]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.get("claims", DISK)[FLOW] == {"number": 16, "cancelled": 0}
    assert (16, 16) in passed
    assert all(highest >= number for number, highest in passed)


def test_a_cancel_of_an_older_claim_changes_nothing(journal: Journal) -> None:
    claims.take(journal, DISK, claim(4))
    with pytest.raises(errors.StaleClaim):
        claims.cancel(journal, DISK, claim(3))
    claims.take(journal, DISK, claim(4))


def test_claims_of_long_ago_are_forgotten(journal: Journal) -> None:
    for number in range(claims.FLOWS_PER_DISK + 5):
        claims.take(journal, DISK, claim(1, f"flow-{number}"))
    assert len(journal.get("claims", DISK)) == claims.FLOWS_PER_DISK
    assert "flow-0" not in journal.get("claims", DISK)
