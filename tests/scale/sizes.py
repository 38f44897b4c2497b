"""How large a run is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes that the targets are about; ``scaled`` makes a quick run that judges nothing about them."""

    deployments: int = 10_000
    nodes: int = 5_000
    foreign_pods: int = 150_000
    burst: int = 1_000
    changes_per_second: tuple[int, ...] = (30, 100)
    change_seconds: float = 20.0
    idle_seconds: float = 60.0
    reconciles: int = 50_000

    def scaled(self, factor: float) -> "Sizes":
        """The same with fewer objects; rates stay."""
        return Sizes(
            deployments=max(1_000, int(round(self.deployments * factor, -3))),
            nodes=max(100, round(self.nodes * factor)),
            foreign_pods=max(1_000, round(self.foreign_pods * factor)),
            burst=max(100, int(round(self.burst * factor, -2))),
            changes_per_second=self.changes_per_second,
            change_seconds=max(5.0, self.change_seconds * factor),
            idle_seconds=max(5.0, self.idle_seconds * factor),
            reconciles=max(2_000, round(self.reconciles * factor)),
        )
