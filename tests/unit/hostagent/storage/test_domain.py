from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from contracts import errors, hostagent
from services.hostagent import layout


def dom(root) -> Path:
    return Path(root["path"], root["id"])


def test_a_new_domain_has_the_files_of_the_layout(storage, domain):
    root = dom(domain)
    sizes = {f.name: f.stat().st_size for f in (root / "dom_md").iterdir()}
    assert sizes["ids"] == 2**20
    assert sizes["inbox"] == sizes["outbox"] == 16 * 2**20
    assert {"metadata", "leases", "xleases"} <= set(sizes)
    assert (root / "images").is_dir()
    assert (root / "master" / "vms").is_dir()
    assert sorted(p.name for p in root.parent.iterdir()) == [domain["id"]]


def test_what_it_tells_is_what_was_promised(storage, root, ids):
    facts = storage.create_domain(root, "silo", ids.center)
    assert hostagent.DomainFacts().load(facts) == facts
    assert (facts["id"], facts["name"], facts["version"]) == (root["id"], "silo", 5)
    assert facts["data_center_id"] == ids.center
    assert 0 < facts["free"] <= facts["total"]
    looked = storage.look_domain(root)
    assert {**looked, "free": 0} == {**facts, "free": 0}


@pytest.mark.skipif(shutil.which("sanlock") is None, reason="the leases are formatted by sanlock's own tool")
def test_its_lockspace_and_leases_are_sanlocks(domain):
    dump = subprocess.check_output(
        ["sanlock", "direct", "read_leader", "-s", f"{domain['id']}:1:ids:0"], cwd=dom(domain) / "dom_md", text=True
    )
    assert domain["id"] in dump
    dump = subprocess.check_output(
        ["sanlock", "direct", "dump", "leases:0:2097152"], cwd=dom(domain) / "dom_md", text=True
    )
    assert "SDM" in dump


def test_its_lease_index_is_empty(domain):
    data = (dom(domain) / "dom_md" / "xleases").read_bytes()
    assert data[2**20 : 2**20 + 4] == b"\x12\x15\x20\x16"


def test_making_it_again_changes_nothing(storage, domain, ids):
    before = {p: p.stat().st_mtime_ns for p in dom(domain).rglob("*")}
    storage.create_domain(domain, "silo", ids.center)
    assert {p: p.stat().st_mtime_ns for p in dom(domain).rglob("*")} == before


def test_making_another_of_the_same_id_is_refused(storage, domain, ids):
    with pytest.raises(errors.DomainUnusable, match="a domain with this id is there already, named 'silo'"):
        storage.create_domain(domain, "barn", ids.center)


@pytest.mark.parametrize("point", ["domain.create.before_metadata", "domain.create.built", "domain.create.renamed"])
def test_a_creation_that_died_is_finished_by_a_repetition(point, die_at, storage, root, ids):
    die_at(point, "create_domain", domain=root, name="silo", data_center_id=ids.center)
    assert storage.create_domain(root, "silo", ids.center)["name"] == "silo"
    assert os.listdir(root["path"]) == [root["id"]]


def test_two_domains_in_one_root_are_refused(storage, domain, ids):
    another = {"id": ids.another, "path": domain["path"]}
    with pytest.raises(errors.DomainUnusable, match=f"holds another domain, {domain['id']}"):
        storage.create_domain(another, "barn", ids.center)
    with pytest.raises(errors.DomainUnusable, match=f"{domain['id']}"):
        storage.look_domain(another)


def test_a_copy_under_another_id_makes_both_unusable(storage, domain, ids):
    shutil.copytree(dom(domain), Path(domain["path"], ids.another))
    with pytest.raises(errors.DomainUnusable, match="holds another domain"):
        storage.look_domain(domain)


def spoil(domain, file: str, change) -> None:
    path = dom(domain) / file
    path.write_bytes(change(path.read_bytes()))


SPOILED = {
    "no metadata": (lambda d: os.unlink(dom(d) / "dom_md/metadata"), "dom_md/metadata is missing"),
    "damaged": (lambda d: spoil(d, "dom_md/metadata", lambda b: b.replace(b"silo", b"solo")), "checksum is wrong"),
    "huge": (lambda d: spoil(d, "dom_md/metadata", lambda b: b + b"\0A" * 10**6), "more than 65536 bytes"),
    "no images": (lambda d: os.rmdir(dom(d) / "images"), "images is not a directory"),
    "dom_md is a link": (
        lambda d: (os.rename(dom(d) / "dom_md", dom(d) / "md"), os.symlink("md", dom(d) / "dom_md")),
        "dom_md is not a directory",
    ),
    "it is a file": (lambda d: (shutil.rmtree(dom(d)), dom(d).write_text("")), "is not a directory"),
    "it is gone": (lambda d: shutil.rmtree(dom(d)), "holds no domain"),
    "no mount point": (lambda d: shutil.rmtree(d["path"]), "does not exist"),
    "a file as mount point": (
        lambda d: (shutil.rmtree(d["path"]), Path(d["path"]).write_text("")),
        "it is not a directory",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_directory_that_is_no_domain_is_refused_with_the_reason(case, storage, domain, ids):
    change, says = SPOILED[case]
    change(domain)
    for ask in (
        lambda: storage.look_domain(domain),
        lambda: storage.scan(domain),
        lambda: storage.create_volume(domain, ids.disk, ids.v1, None, 2**20),
    ):
        with pytest.raises(errors.DomainUnusable, match=says):
            ask()


def test_metadata_of_another_domain_is_refused(storage, domain, ids):
    other = layout.write_domain(layout.new_domain(ids.another, "barn", ids.center, "/d"))
    (dom(domain) / "dom_md/metadata").write_bytes(other)
    with pytest.raises(errors.DomainUnusable, match="names another domain"):
        storage.look_domain(domain)


def test_an_older_domain_is_read_but_not_written(storage, domain, ids):
    metadata = layout.read_domain((dom(domain) / "dom_md/metadata").read_bytes(), "/d")
    old = layout.Domain({**metadata.values, "VERSION": "4"})
    (dom(domain) / "dom_md/metadata").write_bytes(layout.write_domain(old))
    assert storage.look_domain(domain)["version"] == 4
    with pytest.raises(errors.DomainUnusable, match="only version 5 is written"):
        storage.create_volume(domain, ids.disk, ids.v1, None, 2**20)


def test_an_empty_domain_is_deleted_once_and_for_all(storage, domain):
    storage.delete_domain(domain)
    storage.delete_domain(domain)
    assert os.listdir(domain["path"]) == []


@pytest.mark.parametrize("point", ["domain.delete.renamed", "domain.delete.removed"])
def test_a_deletion_that_died_is_finished_by_a_repetition(point, die_at, storage, domain):
    die_at(point, "delete_domain", domain=domain)
    storage.delete_domain(domain)
    assert os.listdir(domain["path"]) == []


def test_a_domain_with_a_disk_is_not_deleted(storage, domain, disk):
    disk.chain("v1")
    with pytest.raises(errors.StillInUse, match="1 disks"):
        storage.delete_domain(domain)
    assert disk.leaf


def test_a_full_storage_leaves_no_half_a_domain(storage, ids, small_domain):
    Path(small_domain["path"], ".filler").write_bytes(b"x" * (4 * 2**20 - 65536))
    with pytest.raises(errors.NoSpace) as caught:
        storage.create_domain(small_domain, "silo", ids.center)
    assert caught.value.fields["needs"] > caught.value.fields["has"]
    assert os.listdir(small_domain["path"]) == [".filler"]


def test_a_directory_with_something_else_in_it_becomes_no_domain(storage, ids, root):
    for harmless in ("lost+found", ".snapshot"):
        Path(root["path"], harmless).mkdir()
    Path(root["path"], "holiday.jpg").touch()
    with pytest.raises(errors.DomainUnusable, match=r"not empty: it holds holiday\.jpg"):
        storage.create_domain(root, "silo", ids.center)
    Path(root["path"], "holiday.jpg").unlink()
    assert storage.create_domain(root, "silo", ids.center)["name"] == "silo"
    Path(root["path"], "holiday.jpg").touch()  # beside a domain that is there it does no harm
    assert storage.create_domain(root, "silo", ids.center)["name"] == "silo"


def test_a_read_only_storage_is_named(storage, ids, small_domain):
    subprocess.run(["mount", "-o", "remount,ro", small_domain["path"]], check=True)
    with pytest.raises(errors.StorageFailed, match="Read-only file system"):
        storage.create_domain({**small_domain, "id": str(uuid.uuid4())}, "silo", ids.center)
