"""The image of vLLM for the CPU, made here where its makers' cannot be pulled: 6 GB, for slow tests only."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rm_local_cluster import Cluster
from rm_local_cluster.images import detect, parts, settings
from rm_local_cluster.images.builders import Recipe

VARIABLE = "RMA_VLLM_CPU_IMAGE"
"""Names an image that is there already, such as the public one, to be used instead."""
_HERE = Path(__file__).parent / "vllm_cpu"


def reference(cluster: Cluster, progress: Callable[[str], None]) -> str:
    """The reference by which pods pull it; built and pushed if it is not in the cluster's registry."""
    if named := os.environ.get(VARIABLE):
        return named
    dockerfile, lock = _HERE / "Dockerfile", parts.checkout() / "requirements/engine-vllm-cpu.txt"
    builder = detect.detect()
    key = hashlib.sha256(dockerfile.read_bytes() + lock.read_bytes() + builder.base().encode()).hexdigest()[:16]
    name = f"rm-abstract-tests/vllm-cpu:{key}"
    pushed = f"{cluster.image_registry_push}/{name}"
    if not builder.pushed(pushed):
        local = f"localhost/{name}"
        with builder.locked(progress) as scratch, tempfile.TemporaryDirectory(dir=scratch) as context:
            builder.ensure_base(progress)
            shutil.copy(lock, context)
            secrets = settings.write_secrets(scratch)
            recipe = Recipe(local, dockerfile, Path(context), {"BASE": builder.base()}, secrets)
            builder.build(recipe, what="building vLLM for the CPU", progress=progress)
            builder.push(local, pushed, what="pushing vLLM for the CPU", progress=progress)
            # The registry has it; a second copy of 6 GB is of no use.
            builder.remove([local])
    return f"{cluster.image_registry_pull}/{name}"
