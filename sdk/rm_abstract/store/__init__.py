"""The artifact store: OCI images in any registry."""

from rm_abstract.store.artifact import ArtifactStore, PushedArtifact
from rm_abstract.store.models import push_model
from rm_abstract.store.reference import Reference
from rm_abstract.store.stage import StageStore

__all__ = ["ArtifactStore", "PushedArtifact", "Reference", "StageStore", "push_model"]
