"""The simulated NPU: a device whose silicon is simulated by the CPU, with everything else as a vendor's would be.

``device`` checks allocated devices against the driver's status tool, ``compiler`` (``rma-sim-compile``) binds a model
to a product and a driver version, ``blob`` is the file format, ``runtime`` runs it, ``plugin`` ties them together.
"""
