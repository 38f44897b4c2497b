"""What a ResourceClaim says that this driver has to give. Pure."""

from typing import Any

from rm_device_plugins.dra.records import Held

Json = dict[str, Any]


class ClaimError(Exception):
    """A claim that cannot be prepared as it is; the message goes into the pod's events."""


def results_of(claim: Json, driver: str, node: str) -> tuple[Held, ...]:
    """The devices of ``driver`` that the scheduler has allocated to the claim, in its order.

    Raises ClaimError where there are none, where they are another node's, and where the claim has parameters for us.
    """
    called = f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"
    allocation = (claim.get("status") or {}).get("allocation")
    if not allocation:
        raise ClaimError(f"the claim {called} is not allocated")
    allocated = allocation.get("devices") or {}
    for config in allocated.get("config") or ():
        if (config.get("opaque") or {}).get("driver") == driver:
            raise ClaimError(f"the claim {called}, or its class, has parameters for {driver}, which takes none")
    ours = [result for result in allocated.get("results") or () if result["driver"] == driver]
    if not ours:
        raise ClaimError(f"the claim {called} has no device of {driver}")
    foreign = next((result["pool"] for result in ours if result["pool"] != node), None)
    if foreign is not None:
        raise ClaimError(f"the claim {called} has devices of the pool {foreign!r}; this node has the pool {node!r}")
    return tuple(Held(result["request"], result["device"], bool(result.get("adminAccess"))) for result in ours)
