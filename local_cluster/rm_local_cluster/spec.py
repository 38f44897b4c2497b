"""What the node's supervisor is told to run, as data that can be written to a file."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Probe:
    """How to see that a component is up: an https or http URL that answers 200 (with a client certificate), a socket
    that accepts, or one on which a container runtime answers (`cri`).
    """

    url: str | None = None
    unix: str | None = None
    cri: str | None = None
    authority: str | None = None
    certificate: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Component:
    """One process of the node.

    `start_seconds` bounds the time until `probe` succeeds; `outlived` says that its files are used again by the next
    node, so that it has to end in order.
    """

    name: str
    argv: tuple[str, ...]
    probe: Probe
    environment: dict[str, str] = field(default_factory=dict)
    start_seconds: float = 60
    outlived: bool = False


@dataclass(frozen=True)
class Stage:
    """Components that start together; then all are waited for, and then `commands` run, before the next stage."""

    components: tuple[Component, ...]
    commands: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class NodeSpec:
    """All that the supervisor has to know.

    `report` is the file in which it says how the node is, `restart_request` the one that names a component to restart;
    `address` is the node's with its prefix length, `gateway` the machine's, `services` the Services' network; `binds`
    are pairs of a directory and where it is mounted in the node; `fixed_settings` are kernel settings by name (as in
    sysctl) that the node sees as given and cannot change; `writable_below` is a directory in the node whose new
    entries every user may write.
    """

    name: str
    address: str
    gateway: str
    services: str
    logs: str
    report: str
    restart_request: str
    binds: tuple[tuple[str, str], ...]
    fixed_settings: dict[str, str]
    writable_below: str
    stages: tuple[Stage, ...]

    def to_json(self) -> str:
        """The specification as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "NodeSpec":
        """Read what `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        stages = []
        for stage in data.pop("stages"):
            components = []
            for component in stage["components"]:
                probe = Probe(**component.pop("probe"))
                components.append(Component(argv=tuple(component.pop("argv")), probe=probe, **component))
            stages.append(Stage(tuple(components), tuple(tuple(command) for command in stage["commands"])))
        binds = tuple((source, target) for source, target in data.pop("binds"))
        return cls(stages=tuple(stages), binds=binds, **data)
