"""What the benchmarks share: results that survive an interruption, and the machine they were made on."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from yolo_slim_lessons.files import write_atomically


class Results:
    """Named results in a JSON file, each computed once; delete the file to measure anew."""

    def __init__(self, path: Path):
        self.path = path
        self.values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, name: str, compute: Callable[[], object]):
        """The stored result ``name``; if there is none, ``compute()`` makes it and it is written down at once."""
        if name not in self.values:
            self.values[name] = compute()
            text = json.dumps(self.values, indent=1, ensure_ascii=False) + "\n"
            write_atomically(self.path, lambda file: file.write_text(text, encoding="utf-8"))
            print(f"{name}: {self.values[name]}", flush=True)
        return self.values[name]

    def keep_to(self, settings: dict) -> None:
        """Note ``settings``, and see that all stored results are theirs.

        Raises:
            ValueError: the file holds results of other settings.
        """
        stored = self.get("settings", lambda: settings)
        if stored != settings:
            raise ValueError(
                f"{self.path} holds results of other settings, {stored}: move it away, or use another file"
            )

    def write_table(self, text: str) -> None:
        """Write the readable table beside the results, and print it."""
        write_atomically(self.path.with_suffix(".md"), lambda file: file.write_text(text, encoding="utf-8"))
        print(text)


def machine() -> str:
    """Processor with its instructions, threads, versions and date in one line."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name).split('+')[0]}" for name in ("torch", "ultralytics"))
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{processor} ({instructions()}), {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {platform.system()}, {packages}, {datetime.date.today():%d %B %Y}"
    )


def instructions() -> str:
    """What decides how fast a processor multiplies integers of 8 bits, as far as Linux says it."""
    flags = set(" ".join(line.split(":")[1] for line in _cpuinfo() if line.startswith(("flags", "Features"))).split())
    kinds = {"avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "avx2": "AVX2", "asimddp": "NEON dot products"}
    return next((name for flag, name in kinds.items() if flag in flags), "instructions unknown")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
