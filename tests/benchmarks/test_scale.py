from __future__ import annotations

from typing import Any

import pytest

from benchmarks import scale


class Emitter:
    def __init__(self) -> None:
        self.emitted = 0

    def ask(self, action: str, **_query: int) -> int:
        assert action == "part"
        self.emitted -= 1
        return self.emitted


class Cluster:
    """Rooms of three; `had` is how many clients had each event."""

    clients = 1_000

    def __init__(self, had: list[int]) -> None:
        self.hosts = [Emitter()]
        self.lost = 0
        self._had = had

    def members(self, _room: int) -> int:
        return 3

    def emit(self) -> int:
        return 0

    def wait_for(self, number: int) -> None:
        pass

    def delays(self) -> dict[int, list[float]]:
        return {0: [9.0]} | {-1 - turn: [1.0] * count for turn, count in enumerate(self._had) if count}

    def lose(self, events: int) -> None:
        self.lost += events


@pytest.mark.parametrize(("had", "lost"), [([3, 3, 3], 0), ([3, 2, 3], 1), ([3, 0, 3], 3), ([0, 3, 1], 5)])
def test_an_event_to_a_room_that_gets_lost_is_noticed(had: list[int], lost: int) -> None:
    cluster: Any = Cluster(had)
    sample = scale._rooms(cluster, 3, lambda _: None)
    assert cluster.lost == lost
    assert sample["room_last_ms"] == 1.0
