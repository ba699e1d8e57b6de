"""Loading: nothing made up, nothing run that the files do not ask for, and no family taken on trust."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny_model import BERT_SPECIALS, layout_around, make_tiny_bert, make_tiny_gemma, make_tiny_qwen3, save
from tests.tiny_tokenizer import make_wordpiece
from workers.encoder import loading as room
from workers.encoder.encoder import Encoder
from workers.encoder.layout import Layout
from workers.encoder.loading import load
from workers.errors import EnvironmentFault, SettingsError
from workers.records import Batch

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture
def copy(gemma, tmp_path) -> Path:
    return shutil.copytree(gemma, tmp_path / "model")


@pytest.fixture
def family(tmp_path) -> Callable[..., Path]:
    """``family(name)`` → a folder with random weights of that kind."""

    def make(name: str) -> Path:
        words = make_wordpiece(
            tmp_path, "some words", BERT_SPECIALS, tokenizer_class="PreTrainedTokenizerFast", model_max_length=120
        )
        kind, config, size = FAMILIES[name]
        save(getattr(transformers, kind)(getattr(transformers, config)(vocab_size=words, **size)), 0, tmp_path)
        return layout_around(tmp_path, ("mean",))

    return make


def loaded(folder: Path, dtype: torch.dtype = torch.float32, **options):
    return load(Layout.read(folder, **options), dtype)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- weights


def test_refuses_missing_weights(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["layers.3.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentFault, match=r"layers.3.mlp.up_proj.weight is not in its weights; 1 are missing"):
        loaded(copy)


def test_refuses_weights_of_another_shape(copy):
    change(copy / "config.json", intermediate_size=130)
    with pytest.raises(
        EnvironmentFault, match=r"down_proj.weight has the shape \[64, 128\] in its weights, and \[64, 130\] by"
    ):
        loaded(copy)


def test_refuses_broken_weights_in_one_sentence(copy):
    (copy / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(EnvironmentFault, match="cannot be loaded as a model") as error:
        loaded(copy)
    assert "\n" not in str(error.value)


def test_a_pooler_may_be_missing_and_is_not_run(tmp_path):
    folder = make_tiny_bert(tmp_path)  # saved without one
    assert loaded(folder).pooler is None


@pytest.mark.parametrize(
    ("name", "level"), [("encoder.layer.0.attention.self.distance.weight", "WARNING"), ("cls.bias", "INFO")]
)
def test_weights_that_nothing_reads_are_said(tmp_path, caplog, monkeypatch, name, level):
    monkeypatch.setattr(logging.getLogger("stream_embedder"), "propagate", True)
    folder = make_tiny_bert(tmp_path)
    weights = load_file(folder / "model.safetensors") | {name: torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, "stream_embedder"):
        loaded(folder)
    (record,) = [record for record in caplog.records if "weights not used" in record.message]
    assert record.levelname == level and name in record.message


# ---- dtype, cache, direction, window


def test_the_dtype_is_ours_and_not_the_files(copy):
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    change(copy / "config.json", dtype="bfloat16")
    assert {weight.dtype for weight in loaded(copy).parameters()} == {torch.float32}


def test_rotary_tables_stay_in_float32(gemma):
    model = loaded(gemma, torch.bfloat16)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    tables = [table for name, table in model.named_buffers() if "inv_freq" in name]
    assert tables and {table.dtype for table in tables} == {torch.float32}


@pytest.mark.parametrize("make", [make_tiny_gemma, make_tiny_qwen3])
def test_nothing_is_cached(tmp_path, make):
    ids = torch.tensor([[3, 4, 5]])
    assert loaded(make(tmp_path))(input_ids=ids, attention_mask=torch.ones_like(ids)).past_key_values is None


def test_refuses_a_version_that_runs_gemma_causally(gemma, monkeypatch):
    whole = room.transformers.AutoModel.from_pretrained

    def old(*arguments, **options):
        model, report = whole(*arguments, **options)
        model.layers[0].self_attn.is_causal = True
        return model, report

    monkeypatch.setattr(room.transformers.AutoModel, "from_pretrained", old)
    with pytest.raises(EnvironmentFault, match="as a causal model"):
        loaded(gemma)


def test_a_causal_model_may_be_causal(tmp_path):
    assert loaded(make_tiny_qwen3(tmp_path)).layers[0].self_attn.is_causal


def test_a_halved_window_is_mended_by_the_setting(gemma, copy):
    change(copy / "config.json", sliding_window=9)  # what 16 became when an older version saved it
    with pytest.raises(EnvironmentFault, match=r"halved by an older transformers; .* model\.sliding_window"):
        loaded(copy)
    ids = np.arange(300, 400, dtype=np.int32)
    expected = Encoder(Layout.read(gemma), device="cpu", dtype="float32").encode(Batch.of([ids]))
    mended = Encoder(Layout.read(copy, sliding_window=16), device="cpu", dtype="float32").encode(Batch.of([ids]))
    assert np.array_equal(mended, expected)
    narrow = Encoder(Layout.read(copy, sliding_window=8), device="cpu", dtype="float32").encode(Batch.of([ids]))
    assert np.abs(narrow - expected).max() > 1e-2


def test_a_window_is_for_models_that_have_one(tmp_path):
    with pytest.raises(SettingsError, match="has no sliding window"):
        Layout.read(make_tiny_bert(tmp_path), sliding_window=16)


# ---- families


# Model class, configuration class, and what makes it small.
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
GPT2 = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2}
FAMILIES = {
    "gpt2": ("GPT2Model", "GPT2Config", GPT2),
    "t5": ("T5EncoderModel", "T5Config", T5),
    "t5 with its decoder": ("T5ForConditionalGeneration", "T5Config", T5),
    "albert": ("AlbertModel", "AlbertConfig", {**SMALL, "embedding_size": 16, "max_position_embeddings": 128}),
    "nomic": ("NomicBertModel", "NomicBertConfig", {**SMALL, "max_position_embeddings": 128}),
    "roberta": ("RobertaModel", "RobertaConfig", {**SMALL, "max_position_embeddings": 130, "pad_token_id": 1}),
    "opt": (
        "OPTModel",
        "OPTConfig",
        {
            **SMALL,
            "ffn_dim": 64,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": True,
        },
    ),
    "llama": ("LlamaModel", "LlamaConfig", {**SMALL, "max_position_embeddings": 128}),
    "mistral": (
        "MistralModel",
        "MistralConfig",
        {**SMALL, "max_position_embeddings": 128, "num_key_value_heads": 1, "sliding_window": 16},
    ),
    "electra": ("ElectraModel", "ElectraConfig", {**SMALL, "max_position_embeddings": 128, "embedding_size": 16}),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 128},
    ),
    "deberta": (
        "DebertaV2Model",
        "DebertaV2Config",
        {
            **SMALL,
            "max_position_embeddings": 64,
            "position_biased_input": False,
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
        },
    ),
    "gte": ("GteModel", "GteConfig", {**SMALL, "max_position_embeddings": 128}),
    "eurobert": ("EuroBertModel", "EuroBertConfig", {**SMALL, "max_position_embeddings": 128, "pad_token_id": 0}),
    "funnel": (
        "FunnelModel",
        "FunnelConfig",
        {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1]},
    ),
    "vit": ("ViTModel", "ViTConfig", SMALL),
    "bart": ("BartModel", "BartConfig", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}),
}


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"funnel", "vit", "bart"}))
@pytest.mark.filterwarnings("ignore")  # what sentence-transformers says at import is not ours
def test_what_transformers_knows_runs_as_in_sentence_transformers(family, name):
    from sentence_transformers import SentenceTransformer

    from workers.text.tokenizer import Tokenizer

    folder = family(name)
    texts = ["some words", "", "words of a longer text, " * 60, "some"]
    layout = Layout.read(folder)
    batch = Batch.of([tokens.ids for tokens in Tokenizer(folder, max_tokens=layout.max_tokens).encode(texts)])
    encoder = Encoder(layout, device="cpu", dtype="float32")
    encoder.self_test()
    reference = SentenceTransformer(str(folder), device="cpu")
    limit = 64 if name == "deberta" else 120  # relative positions have no end, but this is what its files say
    assert layout.max_tokens == reference.max_seq_length == batch.lengths.max() == limit
    assert np.abs(encoder.encode(batch) - reference.encode(texts)).max() <= 5e-6


@pytest.mark.parametrize(
    ("name", "places"), [("roberta", 128), ("opt", 128), ("gpt2", 128), ("t5", None), ("llama", None)]
)
def test_positions_are_seen_in_what_is_read(family, name, places):
    """Whatever the layout says: a table of positions ends where it ends, and rotary or relative ones do not."""
    layout = Layout.read(family(name))
    if places is None:
        load(replace(layout, max_tokens=4000), torch.float32)
    else:
        load(replace(layout, max_tokens=places), torch.float32)
        with pytest.raises(EnvironmentFault, match=f"positions for {places} tokens, .* set model.max_tokens: {places}"):
            load(replace(layout, max_tokens=places + 1), torch.float32)


@pytest.mark.parametrize("where", ["tokenizer_config.json", "sentence_bert_config.json"])
@pytest.mark.parametrize(("name", "moves"), [("distilbert", True), ("gpt2", True), ("opt", False), ("t5", False)])
def test_padding_on_the_left_is_refused_where_it_moves_positions(family, name, moves, where):
    folder = family(name)
    path = folder / where
    told = (
        {"padding_side": "left"} if where == "tokenizer_config.json" else {"tokenizer_args": {"padding_side": "left"}}
    )
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **told}))
    if not moves:
        loaded(folder)
        return
    with pytest.raises(EnvironmentFault, match=r"padding_side left moves .* depends on its batch"):
        loaded(folder)


@pytest.mark.parametrize(
    ("name", "sentence"), [("vit", "does not run on 32 token ids alone"), ("bart", "no encoder of its own")]
)
def test_what_is_no_text_encoder_is_refused(family, name, sentence):
    with pytest.raises(EnvironmentFault, match=sentence) as error:
        loaded(family(name))
    assert "\n" not in str(error.value)


def test_a_family_that_mixes_texts_fails_the_self_test(family):
    with pytest.raises(EnvironmentFault, match="depends on its batch"):
        Encoder(Layout.read(family("funnel")), device="cpu", dtype="float32").self_test()


def test_another_width_than_the_layout_says_is_refused(gemma):
    with pytest.raises(EnvironmentFault, match="does not give 32 numbers for each token"):
        load(replace(Layout.read(gemma), hidden=32), torch.float32)
