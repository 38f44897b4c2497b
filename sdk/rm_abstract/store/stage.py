"""What one Job of a build leaves for the next: several directories as one image, fetched complete or not at all."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rm_api.conditions import Reason
from rm_api.names import MAX_LAYER_BYTES, OCI_ANNOTATION_KEY, OCI_ANNOTATION_PREFIX

from rm_abstract.core.errors import ArtifactMismatch, BadInput
from rm_abstract.http import NotFound
from rm_abstract.store.artifact import PushedArtifact
from rm_abstract.store.backend import Backends
from rm_abstract.store.destination import MARKER, Addition, room
from rm_abstract.store.image import image, push_image
from rm_abstract.store.layers import Layer, Unpacking, pack

ANNOTATION_STAGE: Final = OCI_ANNOTATION_PREFIX + "artifact.stage"


class StageStore:
    """Stages of builds in the store; a context manager, which closes the connections.

    Failures to reach one have the reason ``StoreUnreachable``.
    """

    def __init__(self, *, max_layer_bytes: int = MAX_LAYER_BYTES) -> None:
        self._backends = Backends()
        self._max_layer_bytes = max_layer_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backends.__exit__(kind, error, trace)

    def push(self, directories: Mapping[str, Path], reference: str, *, key: str, stage: int) -> PushedArtifact:
        """Push directories by their names to a tag. One that is absent is as one that is empty."""
        backend, target = self._backends.at(reference)
        if target.digest:
            raise BadInput(f"a stage is pushed to a tag, not to the digest in {reference}")
        layers: list[Layer] = []
        for name, directory in sorted(directories.items()):
            if (directory / MARKER).exists():
                raise BadInput(f"{directory} was not filled completely; fetch the stage into it again")
            if directory.is_dir() and any(directory.iterdir()):
                layers += pack(directory, self._max_layer_bytes, prefix=f"{name}/")
        return PushedArtifact(*push_image(backend, target, layers or [Layer(())], _annotations(key, stage)))

    def fetch(self, directories: Mapping[str, Path], reference: str, *, key: str, stage: int) -> PushedArtifact:
        """Fetch a stage into directories, each by its name, all of them complete or none.

        What is in them besides stays, unless the stage has an entry of the same name, which then takes its place. As
        long as one is not complete it has an entry ``.rma-fetch``. Raises ArtifactMismatch where a byte, the image's
        structure, key or stage is not what it should be, or the stage has a directory that is not asked for.
        """
        backend, source = self._backends.at(reference)
        try:
            manifest = image(backend, source, _annotations(key, stage))
            with ExitStack() as stack:
                additions = {name: stack.enter_context(Addition(path)) for name, path in directories.items()}
                unpacking = Unpacking({name: addition.path for name, addition in additions.items()})
                with room(next(iter(directories.values())), manifest.size, "stage"):
                    for layer in manifest.layers:
                        unpacking.layer(backend.blob(source, layer))
                for addition in additions.values():
                    addition.publish()
        except NotFound as error:
            raise ArtifactMismatch(
                f"{reference} is not complete in the store: {error}", reason=Reason.ARTIFACT_MISSING
            ) from error
        return PushedArtifact(manifest.digest, sum(layer.size for layer in manifest.layers))


def _annotations(key: str, stage: int) -> dict[str, str]:
    return {OCI_ANNOTATION_KEY: key, ANNOTATION_STAGE: str(stage)}
