"""``python -m rm_local_cluster.cri_probe SOCKET``: does a container runtime answer the kubelet's first question?

Its socket accepts connections some moments before, and a kubelet that asks then ends at once. It is asked from a
process of its own: grpc's threads are nothing for the one that starts the node's components.
"""

import sys

import grpc

_SECONDS = 5


def main(socket: str) -> int:
    """0 if it answers; 1, and why not on standard error, otherwise."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        # An empty VersionRequest has no bytes, and what the answer says does not matter.
        version = channel.unary_unary(
            "/runtime.v1.RuntimeService/Version", request_serializer=lambda _: b"", response_deserializer=bytes
        )
        try:
            version(None, timeout=_SECONDS)
        except grpc.RpcError as error:
            print(error.details(), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
