"""Which of root's powers this process has: in containers and sandboxes, root lacks some."""

from pathlib import Path

_BITS = {"SYS_ADMIN": 21, "NET_ADMIN": 12, "SYS_RESOURCE": 24, "MKNOD": 27}


def has_capability(name: str, status: str | None = None) -> bool:
    """Whether this process has a capability, named without `CAP_`; `status` stands in for /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="utf-8") if status is None else status
    effective = next(line.split()[1] for line in text.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> _BITS[name] & 1)
