"""On what, and with which versions, a start of a stage runs, for the history of the run."""

import platform
import socket
from importlib.metadata import PackageNotFoundError, version

import torch


def hardware(device: torch.device) -> dict[str, str]:
    """Names and versions of the first process: host, device_name, python, torch, cuda (that torch was built with, of a
    GPU), project. What this machine does not tell is left out."""
    found = {
        "host": socket.gethostname(),
        "device_name": device_name(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": str(torch.version.cuda or "") if device.type == "cuda" else "",
        "project": _project(),
    }
    return {name: value for name, value in found.items() if value}


def device_name(device: torch.device) -> str:
    """What a device is called by its maker; empty where nothing says so."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            line = next((line for line in file if line.startswith("model name")), "")
    except OSError:
        line = ""
    return line.partition(":")[2].strip() or platform.processor()


def _project() -> str:
    try:
        return version("agl")
    except PackageNotFoundError:
        return ""
