"""Building the project's container images and bringing them to a registry that the cluster pulls from.

An image is built again only when something that goes into it changed: its tag is a digest over its inputs.
"""

from .catalogue import IMAGES, Image
from .pipeline import build

__all__ = ["IMAGES", "Image", "build"]
