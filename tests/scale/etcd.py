"""Objects written straight into etcd, for collections that would take minutes through the API server.

The API server reads JSON as well as what it writes itself, and applies defaults to both. The messages of etcd's gRPC
API that are needed are encoded by hand.
"""

from collections.abc import Iterable

import grpc

PUTS_PER_TRANSACTION = 100
IN_FLIGHT = 8

Entry = tuple[str, bytes]
"""Key, such as ``/registry/pods/NAMESPACE/NAME``, and the object as JSON."""


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def transaction(entries: Iterable[Entry]) -> bytes:
    """An ``etcdserverpb.TxnRequest`` that puts all of ``entries``."""
    # TxnRequest.success = 2, RequestOp.request_put = 2, PutRequest.key = 1 and .value = 2
    return b"".join(_field(2, _field(2, _field(1, key.encode()) + _field(2, value))) for key, value in entries)


def write(address: str, entries: Iterable[Entry]) -> int:
    """Put all of ``entries`` into the etcd at ``address`` (host:port); returns how many there were.

    Entries of one transaction have one revision, and so one resourceVersion. Raises grpc.RpcError.
    """
    count = 0
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/etcdserverpb.KV/Txn")
        batch: list[Entry] = []
        pending: list[grpc.Future] = []

        def flush() -> None:
            pending.append(call.future(transaction(batch), timeout=60))
            batch.clear()
            if len(pending) >= IN_FLIGHT:
                pending.pop(0).result()

        for entry in entries:
            batch.append(entry)
            count += 1
            if len(batch) == PUTS_PER_TRANSACTION:
                flush()
        if batch:
            flush()
        for future in pending:
            future.result()
    return count
