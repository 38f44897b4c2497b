"""Placement: which accelerator serves a model, with which build, and why. A pure function.

``filters`` say what is possible, ``estimate`` how it would run, ``score`` what is best, ``choose`` decides, and
``explain`` says it in figures and sentences.
"""

from rm_operator.plan.placement.choose import place, selected
from rm_operator.plan.placement.request import AcceleratorView, PlacementRequest, PlacementResult, ProfileView

__all__ = ["AcceleratorView", "PlacementRequest", "PlacementResult", "ProfileView", "place", "selected"]
