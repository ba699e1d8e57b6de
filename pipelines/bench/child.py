"""One engine in a process of its own, told what to do by lines of JSON.

Comes in: requests on standard input. Goes out: one answer each on what was standard output, vectors in .npy files. This file
runs by its path in environments that hold no package of ours, and so does ``adapters.py`` beside it. Never here: a
comparison.

    {"do": "load", "engine": …, "model": …, "dtype": …, …}           → {"versions": {…}, "device": "cpu"}
    {"do": "encode", "texts": path, "setting": 32, "vectors": path}  → {"wall_s": …, "cpu_s": …, "rss_bytes": …, …}

An answer to a request that failed is {"error": "one sentence"}; the process goes on. It ends with its input.
"""
# ruff: noqa: PLC0415 - only a CUDA run has torch for sure

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import sys
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

type_vectors = npt.NDArray[np.floating]

REPORTED = (
    *("torch", "transformers", "tokenizers", "sentence-transformers", "infinity-emb", "fastembed", "onnxruntime"),
    *("openvino", "numpy"),
)


class Child:
    """The engine, once it is loaded, and the texts that it has read."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._texts: dict[str, list[str]] = {}
        self._cuda = False

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what one request says."""
        return self._encode(request) if request["do"] == "encode" else self._load(request)

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["cores"] and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, request["cores"])  # before any library counts them
        self._cuda = request["device"] != "cpu"
        engines = runpy.run_path(str(Path(__file__).with_name("adapters.py")))["ENGINES"]
        self._engine = engines[request["engine"]](request)
        device = "cpu"
        if self._cuda:
            import torch

            device = torch.cuda.get_device_name()
        return {"versions": _versions(), "device": device}

    def _encode(self, request: dict[str, Any]) -> dict[str, Any]:
        path = request["texts"]
        if path not in self._texts:
            self._texts[path] = json.loads(Path(path).read_text(encoding="utf-8"))
        texts, engine = self._texts[path], self._engine
        engine.prepare(request["setting"])
        before = engine.counts() if hasattr(engine, "counts") else None
        with _traced(request["trace"]) if "trace" in request else contextlib.nullcontext():
            wall, cpu = time.perf_counter(), time.process_time()
            vectors: type_vectors = engine.encode(texts)  # arrays, so a GPU has finished
            # The CPU seconds of all threads of this process.
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        np.save(request["vectors"], vectors.astype(np.float32, copy=False))
        found: dict[str, Any] = {"wall_s": wall, "cpu_s": cpu, "rss_bytes": _peak_rss()}
        if before is not None:
            tokens, padding = engine.counts()
            found |= {"tokens": tokens - before[0], "padding": padding - before[1]}
        if self._cuda:
            import torch

            found["gpu_bytes"] = torch.cuda.max_memory_allocated()
        return found


@contextlib.contextmanager
def _traced(path: str) -> Iterator[None]:
    """Write a trace of the GPU's kernels to ``path``, in Chrome's format."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        yield
    profiler.export_chrome_trace(path)


def _peak_rss() -> int:
    """The most memory that this process ever held, in bytes."""
    # Linux carries getrusage's figure over from the process that started this one.
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _versions() -> dict[str, str]:
    found = {}
    for name in REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Answer requests until there are no more."""
    # Libraries print to standard output as they like; answers go to what it was.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    child = Child()
    for line in sys.stdin:
        try:
            answer = child.answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is an answer
            traceback.print_exc()
            why = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {why}"[:300]}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
