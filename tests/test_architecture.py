"""The rules of the house, read off the sources without running them.

Imports point one way: `manager -> services -> node, clients -> net -> protocol -> errors`. The pure core knows nothing
that waits, the library never patches anybody's process, and no committed text tells where it was written.
"""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import gevent_mesh

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "gevent_mesh"
DISCOVERY = ROOT / "discovery" / "gevent_mesh_discovery"

# What each part of the library may import from the others. A package's name stands for all of its modules; every part
# may import itself. Whoever adds a module adds a line here, and so decides where it stands.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "protocol": {"errors"},
    "tls": {"protocol", "errors"},
    "config": {"tls", "protocol", "errors"},
    "net": {"config", "tls", "protocol", "errors"},
    "routing": {"net", "protocol", "errors"},
    "outlets": {"protocol", "errors"},
    "stock": set(),
    "fanout": {"outlets", "selection", "stock", "net", "protocol", "errors"},
    "packets": {"stock", "errors"},
    "selection": {"protocol"},
    "service": {"protocol"},
    "websocket": {"net", "protocol", "errors"},
    "limits": {"config", "net", "errors"},
    "connections": {"limits", "outlets", "startup", "stock", "tasks", "websocket", "net", "errors"},
    "tasks": {"stock"},
    "handler": {"websocket"},
    "gunicorn": {"handler"},
    "clients": {"fanout", "selection", "net"},
    "embedded": {"errors"},
    "node": {"embedded", "routing", "service", "config", "net", "protocol", "errors"},
    "interest": {"node", "routing", "service", "net", "protocol"},
    "cluster": {"clients", "interest", "node", "packets", "selection", "service", "net", "protocol", "errors"},
    "presence": {"clients", "node", "service", "net", "protocol", "errors"},
    "health": {"node", "service", "net", "protocol"},
    "commands": {
        "clients",
        "cluster",
        "interest",
        "node",
        "packets",
        "selection",
        "service",
        "net",
        "protocol",
        "errors",
    },
    "emitter": {"clients", "cluster", "node", "config", "net", "protocol", "errors"},
    "relay": {"cluster", "interest", "node", "service", "net", "protocol", "errors"},
    "asking": {"cluster", "node", "packets", "service", "net", "protocol", "errors"},
    "leaving": {"clients", "node"},
    "startup": {"errors"},
    "testclient": {"errors"},
    "manager": {
        "asking",
        "connections",
        "clients",
        "cluster",
        "commands",
        "emitter",
        "fanout",
        "health",
        "interest",
        "leaving",
        "limits",
        "node",
        "packets",
        "presence",
        "selection",
        "relay",
        "routing",
        "startup",
        "testclient",
        "net",
        "config",
        "protocol",
        "errors",
    },
    "__init__": {"cluster", "health", "manager", "presence", "net", "errors"},
    # Above the library: programs that use its public names.
    "demo": {"__init__"},
    "shell": {"__init__"},
    "cli": {"__init__", "demo", "shell"},
}
# What of the library the discovery service may use.
DISCOVERY_MAY_IMPORT = (
    "gevent_mesh.protocol",
    "gevent_mesh.net.listener",
    "gevent_mesh.net.transport",
    "gevent_mesh.tls",
    "gevent_mesh.errors",
)
# The part of the library that may start a discovery service.
MAY_START_DISCOVERY = {"embedded"}

IMPURE = {"asyncio", "gevent", "logging", "random", "secrets", "select", "signal", "socket", "ssl", "threading", "time"}

PUBLIC_NAMES = {
    "ClientAnswers",
    "ClientCount",
    "ConfigError",
    "EmitterError",
    "GeventMeshManager",
    "Handshake",
    "Health",
    "HealthApp",
    "MeshError",
    "NodeAnswers",
    "Outcome",
    "PayloadError",
    "PayloadTooLarge",
    "PeerInfo",
    "Presence",
    "PresentClient",
    "PresentUser",
    "RemoteSocket",
    "RoomCounts",
    "SocketList",
    "StartError",
    "__version__",
}


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def module_name(path: Path, folder: Path) -> str:
    """`gevent_mesh.net.link` for its file; a package is named like its `__init__` module without that suffix."""
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, folder: Path) -> Iterator[str]:
    """All modules that a file imports, at its top or inside a function, by their absolute names.

    `from package import name` yields `package.name` when that is a module of ours, else `package`.
    """
    package = module_name(path, folder).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield whole if is_our_module(whole) else origin


def is_our_module(name: str) -> bool:
    path = Path(*name.split("."))
    return any(
        (home / path).with_suffix(".py").exists() or (home / path / "__init__.py").exists()
        for home in (ROOT, ROOT / "discovery")
    )


def part_of(module: str) -> str:
    """The part of the library that a module belongs to: `net` for `gevent_mesh.net.link`."""
    _, *below = module.split(".")
    return below[0] if below else "__init__"


def test_every_part_of_the_library_has_its_place() -> None:
    parts = {part_of(module_name(path, LIBRARY)) for path in sources(LIBRARY)}
    assert parts <= MAY_IMPORT.keys(), f"say in MAY_IMPORT what {parts - MAY_IMPORT.keys()} may import"


@pytest.mark.parametrize("path", sources(LIBRARY), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(module_name(path, LIBRARY))
    allowed = MAY_IMPORT[part] | {part}
    ours = {name for name in imports(path, LIBRARY) if name.split(".")[0] == "gevent_mesh"}
    assert {name for name in ours if part_of(name) not in allowed} == set()


@pytest.mark.parametrize("path", sources(LIBRARY / "protocol"), ids=lambda path: path.name)
def test_protocol_is_pure(path: Path) -> None:
    impure = {name for name in imports(path, LIBRARY) if name.split(".")[0] in IMPURE}
    # A random.Random may be an argument's type; nothing else of that module may be touched.
    assert impure <= {"random"}
    uses = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
    ]
    assert {use.attr for use in uses} <= {"Random"}


@pytest.mark.parametrize("path", sources(DISCOVERY), ids=lambda path: path.name)
def test_discovery_uses_little_of_the_library(path: Path) -> None:
    ours = {name for name in imports(path, DISCOVERY) if name.split(".")[0] == "gevent_mesh"}
    assert {name for name in ours if not (name + ".").startswith(tuple(f"{a}." for a in DISCOVERY_MAY_IMPORT))} == set()


@pytest.mark.parametrize("path", sources(LIBRARY), ids=lambda path: str(path.relative_to(ROOT)))
def test_library_does_not_import_the_discovery_service(path: Path) -> None:
    if part_of(module_name(path, LIBRARY)) in MAY_START_DISCOVERY:
        return
    assert not [name for name in imports(path, LIBRARY) if name.split(".")[0] == "gevent_mesh_discovery"]


@pytest.mark.parametrize("path", sources(LIBRARY) + sources(DISCOVERY), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_monkey_patched(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not {name for name in names if name.startswith("patch_")}


def test_every_package_is_shipped() -> None:
    """setup.cfg lists packages by name: a new one that is forgotten would be missing from what users install."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    homes = {
        "gevent_mesh": LIBRARY,
        "gevent_mesh_discovery": DISCOVERY,
        "gevent_mesh_examples": ROOT / "examples_flask",
    }
    found = {
        ".".join([name, *init.parent.relative_to(home).parts])
        for name, home in homes.items()
        for init in home.rglob("__init__.py")
    }
    assert listed == found


def test_public_names_are_what_was_decided() -> None:
    assert set(gevent_mesh.__all__) == PUBLIC_NAMES
    assert all(hasattr(gevent_mesh, name) for name in PUBLIC_NAMES)


def committed_files() -> list[Path]:
    """What git tracks or would track; where git or the repository is missing, the sources."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        folders = ("gevent_mesh", "discovery", "examples_flask", "tests", "benchmarks", "docs", "docker")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return [path for path in paths if path.is_file()]


def test_no_text_names_a_path_of_the_machine_it_was_written_on() -> None:
    # Put together from pieces, or this file would be found.
    homes = "|".join(("ro" + "ot", "wo" + "rk", "ho" + r"me/\w+", "Us" + r"ers/\w+"))
    machine_path = re.compile(rf"(?<![\w.}}~-])/(?:{homes})(?:/|\b)(?![-\w])")
    found = []
    for path in committed_files():
        text = path.read_bytes()
        if b"\0" not in text:
            lines = text.decode("utf-8", "replace").splitlines()
            found += [f"{path.relative_to(ROOT)}:{n}" for n, line in enumerate(lines, 1) if machine_path.search(line)]
    assert found == []
