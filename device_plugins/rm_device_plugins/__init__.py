"""Device plugins for the kubelet: one framework, one module per vendor, and the suite that checks any plugin."""
