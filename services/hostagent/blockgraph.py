"""What QEMU's monitor says about its block layer, as values. Pure.

The source is `x-debug-query-block-graph` (QEMU >= 4.0): nodes and the edges between them, so that the chain is what
QEMU really has open and not what a header says, and so that a job's ends are named ("base" or "target", and the
nodes that it copies from). `query-block` hides both; its file names are `json:{...}` strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Reply = Any  # JSON that the monitor answered


@dataclass(frozen=True)
class Layer:
    """One volume that QEMU has open in a chain: its format node, its protocol node and the file's name. `written`: it
    may be written to."""

    node: str
    storage: str
    path: str
    written: bool = False


@dataclass(frozen=True)
class Job:
    """A block job. `base` and `top` are node names, None where the graph does not tell: of a pull, the lowest node that
    leaves the chain and the one that stays. `active`: it mirrors what the guest writes, and needs a pivot."""

    id: str
    type: str
    status: str
    ready: bool
    cur: int
    end: int
    speed: int
    base: str | None
    top: str | None
    active: bool = False


@dataclass(frozen=True)
class Blocks:
    """`chains`: by the device's name (it contains the disk's alias), leaf first. `loose`: nodes in no chain."""

    chains: dict[str, tuple[Layer, ...]] = field(default_factory=dict)
    jobs: tuple[Job, ...] = ()
    loose: tuple[str, ...] = ()

    @property
    def working(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.status not in ("concluded", "null"))

    def chain(self, alias: str) -> tuple[Layer, ...] | None:
        """The chain of the device with this alias; None: QEMU has no such device, or none is named."""
        named = (chain for name, chain in self.chains.items() if alias in name.split("/"))
        return next(named, None) if alias else None  # names begin with a slash: nothing would be a part of each

    def job(self, chain: tuple[Layer, ...]) -> Job | None:
        """The job that works on this chain; one that is concluded and waits to be dismissed is over."""
        nodes = {layer.node for layer in chain}
        return next((job for job in self.working if {job.base, job.top} & nodes), None)


def read(graph: Reply, files: Mapping[str, str], block_jobs: Reply, jobs: Reply) -> Blocks:
    """From the answers to x-debug-query-block-graph, query-block-jobs, query-jobs; `files`: by node name."""
    net = _Net(graph, files)
    chains = {net.names[id_]: net.chain(id_) for id_ in net.devices()}
    in_chain = {name for chain in chains.values() for layer in chain for name in (layer.node, layer.storage)}
    loose = tuple(name for name in net.drivers() if name not in in_chain and not name.startswith("#block"))
    details = {job["device"]: job for job in block_jobs}
    found = tuple(_job(net, job, details.get(job["id"], {})) for job in jobs)
    return Blocks(chains, found, loose)


def _job(net: _Net, job: Reply, detail: Reply) -> Job:
    base, top = net.ends(job["id"])
    status = str(job["status"])
    return Job(
        id=job["id"],
        type=_TYPES.get(job["type"], job["type"]),
        status=status,
        ready=bool(detail.get("ready", status == "ready")),
        cur=int(job["current-progress"]),
        end=int(job["total-progress"]),
        speed=int(detail.get("speed", 0)),
        base=base,
        top=top,
        active=net.mirrors(job["id"]),
    )


_TYPES: dict[str, str] = {"stream": "pull"}


class _Net:
    """The graph with its edges by parent."""

    def __init__(self, graph: Reply, files: Mapping[str, str]) -> None:
        self.names: dict[int, str] = {node["id"]: node["name"] for node in graph["nodes"]}
        self._kinds: dict[int, str] = {node["id"]: node["type"] for node in graph["nodes"]}
        self._below: dict[int, dict[str, list[int]]] = {}
        self._writers = {(edge["parent"], edge["child"]) for edge in graph["edges"] if "write" in edge["perm"]}
        for edge in graph["edges"]:
            self._below.setdefault(edge["parent"], {}).setdefault(edge["name"], []).append(edge["child"])
        self._files = files

    def devices(self) -> list[int]:
        """Block backends that belong to a guest's device: the others (of jobs) have no name."""
        return [id_ for id_, kind in self._kinds.items() if kind == "block-backend" and self.names[id_]]

    def drivers(self) -> list[str]:
        return [self.names[id_] for id_, kind in self._kinds.items() if kind == "block-driver"]

    def chain(self, device: int) -> tuple[Layer, ...]:
        """Down from a device; filters (of jobs) have no file of their own and are passed through."""
        layers: list[Layer] = []
        node = self._child(device, "root")
        while node is not None and len(layers) < 10_000:
            storage = self._child(node, "file")
            if storage is not None and self._child(storage, "file") is None:
                name, written = self.names[storage], (node, storage) in self._writers
                layers.append(Layer(self.names[node], name, self._files.get(name, ""), written))
                node = self._child(node, "backing")
            else:
                node = storage if storage is not None else self._child(node, "backing")
        return tuple(layers)

    def ends(self, job_id: str) -> tuple[str | None, str | None]:
        """base and top of a commit: its base or target, and the highest node that it copies from. An active one names
        that as its source; its intermediate nodes are only what lies between (none for a single layer)."""
        edges = self._edges_of(job_id)
        if "active node" in edges:  # a stream: the intermediate nodes go, the last of them stands on what stays below
            return self._name(self._lowest(edges.get("intermediate node", []))), self._name(edges["active node"][0])
        bases = edges.get("base") or edges.get("target") or []
        sources = edges.get("source") or edges.get("intermediate node") or []
        return self._name(bases[0] if bases else None), self._name(self._highest(sources))

    def mirrors(self, job_id: str) -> bool:
        """Whether it follows the guest's writes: then it has a target in place of a base."""
        return bool(self._edges_of(job_id).get("target"))

    def _edges_of(self, job_id: str) -> dict[str, list[int]]:
        found = (id_ for id_, kind in self._kinds.items() if kind == "block-job" and self.names[id_] == job_id)
        return self._below.get(next(found, -1), {})

    def _highest(self, nodes: list[int]) -> int | None:
        """The one of these that no other one of these has below it."""
        lower = {child for node in nodes for child in self._below.get(node, {}).get("backing", [])}
        return next((node for node in nodes if node not in lower), None)

    def _lowest(self, nodes: list[int]) -> int | None:
        """The one of these that stands on no other one of these."""
        below = ((node, self._below.get(node, {}).get("backing", [])) for node in nodes)
        return next((node for node, lower in below if not {*lower} & {*nodes}), None)

    def _child(self, node: int, edge: str) -> int | None:
        children = self._below.get(node, {}).get(edge)
        return children[0] if children else None

    def _name(self, node: int | None) -> str | None:
        return None if node is None else self.names[node]
