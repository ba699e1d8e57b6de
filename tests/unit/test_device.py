"""Which numbers a model runs in, on which device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workers.encoder import device as room
from workers.encoder.device import device_of, dtypes_of, has_bfloat16
from workers.encoder.layout import Layout
from workers.errors import EnvironmentFault, SettingsError

CPU = torch.device("cpu")
LAYOUT = Layout(Path(), Path(), "bert", 128, 32, 32)


@pytest.mark.parametrize(
    ("flags", "multiplies"),
    [({"avx512f", "avx512_bf16"}, True), ({"amx_bf16"}, True), ({"asimd", "bf16"}, True), ({"avx2", "avx512f"}, False)],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(monkeypatch, flags, multiplies):
    monkeypatch.setattr(room, "_cpu_flags", lambda: frozenset(flags))
    assert has_bfloat16(CPU) == multiplies
    expected = (torch.bfloat16, torch.float32) if multiplies else (torch.float32,)
    assert dtypes_of("auto", CPU, LAYOUT) == expected


def test_the_flags_are_this_machines():
    flags = room._cpu_flags()
    if Path("/proc/cpuinfo").is_file():
        assert {"sse2", "asimd", "fp"} & flags


def test_a_name_is_what_it_says():
    assert dtypes_of("float32", CPU, LAYOUT) == (torch.float32,)
    assert dtypes_of("float16", CPU, LAYOUT) == (torch.float16,)
    with pytest.raises(SettingsError, match="not one of auto"):
        dtypes_of("int8", CPU, LAYOUT)
    with pytest.raises(SettingsError, match="float16 overflows in Gemma"):
        dtypes_of("float16", CPU, replace(LAYOUT, model_type="gemma3_text"))


def test_devices():
    assert device_of("cpu") == CPU
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(SettingsError, match="not one that torch knows"):
        device_of("quantum")
    with pytest.raises(EnvironmentFault, match="CUDA devices here"):
        device_of("cuda:77")
