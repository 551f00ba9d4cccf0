"""Real traffic of Node servers: `nodejs_recorded.json`, frame by frame, with what is in each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack

__all__ = ["RECORDED", "cluster_message", "plain", "recorded"]

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("nodejs_recorded.json").read_text("utf-8"))


def plain(value: Any, *, dates_as_text: bool = True) -> Any:
    """What a recorded value is in Python."""
    if isinstance(value, list):
        return [plain(item, dates_as_text=dates_as_text) for item in value]
    if not isinstance(value, dict):
        return value
    if "$bin" in value:
        return bytes.fromhex(value["$bin"])
    if "$float" in value:
        return float(value["$float"])
    if "$ext" in value:
        return value["iso"] if dates_as_text else msgpack.Timestamp.from_bytes(bytes.fromhex(value["hex"]))
    return {key: plain(item, dates_as_text=dates_as_text) for key, item in value.items()}


def recorded(name: str, step: str) -> bytes:
    """The payload of the first frame of a kind in a step of the recording."""
    found = next(entry for entry in RECORDED if (entry["name"], entry["step"]) == (name, step))
    return bytes.fromhex(found["frame_hex"])


def cluster_message(name: str, step: str) -> dict[str, Any]:
    """The cluster message in it."""
    message: dict[str, Any] = plain(
        next(entry for entry in RECORDED if (entry["name"], entry["step"]) == (name, step))["decoded"]["message"]
    )
    return message
