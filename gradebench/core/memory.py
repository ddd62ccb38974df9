"""The most memory that was used since a moment of our choice."""

import contextlib
import resource
from pathlib import Path

import torch


def reset_peak_memory(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: restarts the peak of this process


def peak_memory(device: str) -> float:
    """Bytes, of the process on a CPU and of the device's allocator on a GPU."""
    if device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
    except (OSError, StopIteration):
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
