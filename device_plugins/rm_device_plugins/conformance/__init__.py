"""What a device plugin is checked with: a kubelet's device manager without the rest of the kubelet."""
