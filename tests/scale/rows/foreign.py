"""A large cluster that is mostly other people's: what its nodes and pods cost the operator."""

from collections.abc import Iterator, Sequence

from scale import objects, settled
from scale.cluster import Cluster
from scale.etcd import Entry
from scale.report import Row
from scale.rows.cold import PER_NAMESPACE, WARM, start
from scale.sizes import Sizes

NAMESPACES = 10


async def run(sizes: Sizes) -> Sequence[Row]:
    """The same start as of ``cold``'s smaller size, with and without them."""
    template = await settled.settled(PER_NAMESPACE, replicas=0, model={"source": objects.SOURCE, "servedName": "llama"})
    spaces = objects.namespaces("scale", NAMESPACES)
    deployments = NAMESPACES * PER_NAMESPACE

    def entries() -> Iterator[Entry]:
        yield from template.entries(spaces)
        yield from objects.foreign_entries(sizes.nodes, sizes.foreign_pods)

    async with Cluster() as cluster:
        await cluster.fill(template.entries(spaces), WARM)
        alone = await start(cluster, deployments, 0)
        await cluster.fill(entries(), WARM)
        found = await start(cluster, deployments, 0)
    name = f"{sizes.nodes} nodes, {sizes.foreign_pods} foreign pods"
    more = found.rss_mib - alone.rss_mib
    return [
        Row(
            "foreign",
            f"{name}: synced",
            found.sync_seconds,
            "s",
            note=f"{found.cpu_seconds:.1f} s of CPU; without them {alone.sync_seconds:.1f} and {alone.cpu_seconds:.1f}",
        ),
        Row("foreign", "RSS", found.rss_mib, "MiB", note=f"{alone.rss_mib:.0f} without; peak {found.peak_mib:.0f}"),
        Row("foreign", "memory for one pod or node", more * 1024 / (sizes.nodes + sizes.foreign_pods), "KiB"),
        Row("foreign", "writes of the first round", len(found.first_writes), "", note="counts of the fleet"),
    ]
