"""Facts about the machine of a measurement, and the versions of the software."""

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sanic_nats_bridge.testing import NatsServer

__all__ = ["machine"]

_PACKAGES = ("sanic-nats-bridge", "sanic", "uvloop", "nats-py", "msgspec", "websockets")


def machine() -> dict[str, Any]:
    """Return the facts by their names."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    with NatsServer() as server:
        nats_server = server.monitor("/varz")["version"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "CPU": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory (GiB)": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "nats-server": nats_server,
        **{name: version(name) for name in _PACKAGES},
    }
