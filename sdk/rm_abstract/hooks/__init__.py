"""What makes an unchanged script run on another device: hooks on transformers, set by ``init`` and undone exactly."""

from rm_abstract.hooks.transformers_hooks import Hooks, LoadsModels

__all__ = ["Hooks", "LoadsModels"]
