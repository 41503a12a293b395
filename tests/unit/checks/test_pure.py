"""Which modules count as rules without I/O."""

from tests.checks import pure


def test_a_rule_needs_contracts_other_rules_and_names_only() -> None:
    modules = {
        "services.a.rules": "import os\nfrom contracts import errors\nprint(os.path.basename('x').upper())",
        "services.a.more": "from services.a import rules\nfrom services.a.rules import x",
        "services.a.reads": "import os\nos.stat('x')",
        "services.a.waits": "import time",
        "services.a.rests": "from services.a import waits, rules",
        "services.a.typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sqlalchemy",
        "services.a.inside": "def f():\n    import subprocess",
    }
    assert pure.pure(modules) == {"services.a.rules", "services.a.more", "services.a.typed"}


def test_the_list_of_this_project_is_whole_and_read_from_one_place() -> None:
    assert pure.listed() == pure.pure(pure.sources())
    assert {"services.snapshots.chain", "services.hostagent.domainxml", "services.inventory.beats"} <= pure.listed()
