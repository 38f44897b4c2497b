"""One of several processes that want the same artifact: prints what happened to it."""

import json
import os
import sys
import time
from pathlib import Path

from rm_abstract.core.artifacts import ArtifactCache
from rm_abstract.core.binary_adapter import CLICompilerAdapter
from rm_abstract.core.errors import WorkloadError
from rm_abstract.core.resource import BuildArtifact, BuildProfile, ResourceType


def compile_once(root: Path, tool: Path, model: Path) -> None:
    """Compile through the cache, and read what came out, as an engine would."""
    profile = BuildProfile(ResourceType.NPU, "slowcc", output_format="npu")
    try:
        with ArtifactCache(root / "cache").compile(CLICompilerAdapter(profile, [tool.parent]), model) as hold:
            hold.artifact.validate()
            print(json.dumps({"built": hold.built, "digest": hold.artifact.digest}))
    except WorkloadError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))


def die_building(root: Path) -> None:
    """Begin to build, and be killed half-way."""

    def build(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("x" * 1000)
        BuildArtifact(path, "k", "f").write()
        os.kill(os.getpid(), 9)

    ArtifactCache(root / "cache").get_or_build("k", build)


def hold_until_told(root: Path) -> None:
    """Hold an artifact until standard input ends, or this process is killed."""
    hold = ArtifactCache(root / "cache").get("k")
    assert hold is not None
    print("holding", flush=True)
    sys.stdin.read()


def churn(root: Path) -> None:
    """Get, build and collect at random for a number of rounds; whatever is got must be whole."""
    import random

    rng = random.Random(os.getpid())
    cache = ArtifactCache(root / "cache", max_bytes=3000, check="full", keep_versions=1)
    for _ in range(25):
        key = f"key-{rng.randrange(5)}"

        def build(path: Path, key: str = key) -> None:
            path.mkdir()
            for part in range(3):
                (path / f"part{part}").write_bytes(key.encode() * 60)
                time.sleep(0.001)
            BuildArtifact(path, key, "f").write()

        with (cache.rebuild if rng.random() < 0.3 else cache.get_or_build)(key, build) as hold:
            hold.artifact.validate()
            time.sleep(0.002)
            hold.artifact.validate()
    print("whole")


if __name__ == "__main__":
    {"compile": compile_once, "die": die_building, "hold": hold_until_told, "churn": churn}[sys.argv[1]](
        *map(Path, sys.argv[2:])
    )
