"""Attaching the bills of materials of pushed images to them."""

import os
from collections.abc import Mapping

from ..errors import LocalClusterError
from .catalogue import IMAGES
from .plan import remote_reference, speaks_plain_http


def attach(registry: str, references: Mapping[str, str]) -> None:
    """Attach to each of these images, as it was pushed to `registry`, the bill that it holds.

    `references` maps names to references, whose tags count. Raises LocalClusterError where the registry refuses.
    """
    # With the SDK's client for registries, which is an extra that building alone does not need.
    from rm_abstract.core.errors import WorkloadError  # noqa: PLC0415
    from rm_abstract.store.reference import Reference  # noqa: PLC0415
    from rm_abstract.store.referrers import attach_bill  # noqa: PLC0415
    from rm_abstract.store.registry import Registry  # noqa: PLC0415
    from rm_api.names import ENV_PLAIN_HTTP_HOSTS  # noqa: PLC0415

    if speaks_plain_http(registry):
        os.environ.setdefault(ENV_PLAIN_HTTP_HOSTS, registry.partition("/")[0])
    client = Registry()
    try:
        for name, reference in references.items():
            tag = reference.rpartition(":")[2]
            attach_bill(client, Reference.parse(remote_reference(registry, IMAGES[name], tag)))
    except WorkloadError as error:
        raise LocalClusterError(f"the bill of materials was not attached: {error}") from error
    finally:
        client.close()
