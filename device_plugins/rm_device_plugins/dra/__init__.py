"""The vendor modules as a driver for dynamic resource allocation (``resource.k8s.io/v1``)."""
