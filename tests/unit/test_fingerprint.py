"""The fingerprint changes with all that decides a vector, and with nothing else."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import EnvironmentFault
from workers.fingerprint import fingerprint, model_digest

inputs = st.fixed_dictionaries(
    {
        "digest": st.text("0123456789abcdef", min_size=1, max_size=8),
        "prompt": st.text(max_size=8),
        "template": st.text(max_size=8),
        "max_tokens": st.integers(1, 9),
        "overflow": st.sampled_from(["truncate", "reject"]),
        "dim": st.integers(1, 9),
        "precision": st.sampled_from(["float32", "float16"]),
        "ranges": st.none() | st.text("0123456789abcdef", max_size=4),
    }
)


@given(inputs, inputs)
def test_equal_for_equal_inputs_only(one, other):
    first, second = fingerprint(**one), fingerprint(**other)
    assert (first == second) == (one == other)
    assert len(first) == 16 and set(first) <= set("0123456789abcdef")


@given(inputs, st.sampled_from(["prompt", "template", "overflow", "precision", "digest"]))
def test_every_text_counts(values, name):
    assert fingerprint(**values) != fingerprint(**{**values, name: values[name] + "x"})


@given(inputs, st.sampled_from(["max_tokens", "dim"]))
def test_every_number_counts(values, name):
    assert fingerprint(**values) != fingerprint(**{**values, name: values[name] + 1})


def test_stays_what_it_is_across_versions():
    # Records out there carry it: a change of this value makes every deployment refuse its own output.
    given = fingerprint(
        "ab", prompt="é: ", template="{text}", max_tokens=256, overflow="truncate", dim=384, precision="float32"
    )
    assert given == "813323a525e89a10"
    given = fingerprint(
        "ab",
        prompt="é: ",
        template="{text}",
        max_tokens=256,
        overflow="truncate",
        dim=384,
        precision="int8_ranges",
        ranges="cd",
    )
    assert given == "673c403f202e7145"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in ("model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json", "README.md"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path)
    modules = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}, {"path": "2_Normalize"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    return tmp_path


@pytest.mark.parametrize(
    "path", ["model.safetensors", "tokenizer.json", "config.json", "1_Pooling/config.json", "vocab.txt"]
)
def test_digest_sees(folder, path):
    before = model_digest(folder)
    assert before == model_digest(folder)
    (folder / path).write_text("other")
    assert model_digest(folder) != before


@pytest.mark.parametrize(
    "path", ["README.md", "pytorch_model.bin", "onnx/model.safetensors", ".git/config.json", "data_config.json"]
)
def test_digest_does_not_see(folder, path):
    before = model_digest(folder)
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text("other")
    assert model_digest(folder) == before


def test_digest_sees_what_is_used_instead_of_the_files(folder):
    plain = model_digest(folder)
    assert model_digest(folder, route="", sliding_window=None) == plain
    found = {model_digest(folder, route=route, sliding_window=16) for route in ("", "query", "document")}
    assert len(found | {plain}) == 4


@pytest.mark.parametrize(("file", "kind"), [("router_config.json", "Router"), ("config.json", "Asym")])
def test_digest_sees_the_modules_of_a_router(folder, file, kind):
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "3_Router", "type": f"sentence_transformers.models.{kind}"})
    (folder / "modules.json").write_text(json.dumps(modules))
    dense = folder / "3_Router/query_0_Dense"
    dense.mkdir(parents=True)
    (folder / "3_Router" / file).write_text(json.dumps({"types": {"query_0_Dense": "…Dense"}}))
    (dense / "model.safetensors").write_text("weights")
    before = model_digest(folder)
    (dense / "model.safetensors").write_text("other")
    changed = model_digest(folder)
    (folder / "3_Router" / file).write_text(json.dumps({"types": {"query_0_Dense": "…LayerNorm"}}))
    assert len({before, changed, model_digest(folder)}) == 3
    (folder / "3_Router" / file).write_text("[]")
    with pytest.raises(EnvironmentFault, match="not a list of modules"):
        model_digest(folder)


def test_a_template_is_another_prompt_than_its_own_text():
    about = {"template": "", "max_tokens": 8, "overflow": "truncate", "dim": 4, "precision": "float32"}
    assert fingerprint("ab", prompt="{title}", **about) != fingerprint("ab", prompt=("{title}",), **about)


def test_digest_sees_names(folder):
    before = model_digest(folder)
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    assert model_digest(folder) != before


def test_digest_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(EnvironmentFault, match="no weights"):
        model_digest(folder)
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        model_digest(folder / "absent")
