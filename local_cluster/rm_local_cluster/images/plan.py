"""What has to be done to bring images to where they are wanted; no I/O."""

import ipaddress
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from .catalogue import Image

LOCAL = "localhost"


class Action(StrEnum):
    """KEEP: it is where it is wanted. PUSH: built, but the registry lacks it. BUILD: build it, push it if asked to."""

    KEEP = "keep"
    PUSH = "push"
    BUILD = "build"


@dataclass(frozen=True)
class Job:
    """One image on its way: `local` names it in the builder's storage, `remote` where it is pushed, if it is."""

    image: Image
    action: Action
    local: str
    remote: str | None


def local_reference(image: Image, tag: str) -> str:
    """The name of an image in the builder's storage."""
    return f"{LOCAL}/{image.repository}:{tag}"


def remote_reference(registry: str, image: Image, tag: str) -> str:
    """The name of an image in a registry, `host[:port][/path]`."""
    return f"{registry.rstrip('/')}/{image.repository}:{tag}"


def plan(images: Sequence[Image], tags: Mapping[str, str], *, push: str | None, existing: Set[str]) -> list[Job]:
    """One job for each image, in order.

    `tags` maps names of images to their tags; `existing` holds the references, local and remote, that are there.
    """
    jobs = []
    for image in images:
        local = local_reference(image, tags[image.name])
        remote = remote_reference(push, image, tags[image.name]) if push is not None else None
        if (remote or local) in existing:
            action = Action.KEEP
        elif local in existing:
            action = Action.PUSH
        else:
            action = Action.BUILD
        jobs.append(Job(image, action, local, remote))
    return jobs


def outdated(present: Set[str], jobs: Sequence[Job]) -> list[str]:
    """Of the local references in `present`, those that a job replaces: same image, another tag."""
    repositories = {job.local.rpartition(":")[0]: job.local for job in jobs}
    return sorted(
        reference
        for reference in present
        if (current := repositories.get(reference.rpartition(":")[0])) is not None and reference != current
    )


def speaks_plain_http(registry: str) -> bool:
    """Whether a registry is one of this machine or its node: named localhost or by a private address, it has no TLS."""
    host = registry.split("/", maxsplit=1)[0]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    if host == LOCAL:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_private or address.is_loopback
