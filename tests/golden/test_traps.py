"""The traps between a model's files and its vectors, and the test that fails when each is sprung.

Each mutation was made in the source, and the test after the arrow failed (``file::test``, without ``.py``).

 1  The sliding window. The loaded config's one wider
    → test_parity::test_equal_on_every_kind_of_model
 2  A window halved on disk. Odd ones not refused
    → test_layout::test_refuses
    The setting put in behind the class's own conversion
    → test_loading::test_a_halved_window_is_mended_by_the_setting
 3  Run causally by an old version. is_causal not looked at
    → test_loading::test_refuses_a_version_that_runs_gemma_causally
 4  The attention mask. All ones
    → test_encoder::test_packed_is_padded
    Padding pooled
    → test_encoder::test_packed_is_padded
    Packed texts attending to each other
    → test_attention::test_each_text_sees_itself_alone
    A window one wider for packed texts
    → test_attention::test_each_text_sees_itself_alone
 5  bos and eos. Declared ones not looked for
    → test_tokenizer_files::test_refuses_a_file_that_does_not_add_what_is_declared
 6  Truncation that loses eos. Ids cut by hand
    → test_tokenizer::test_special_tokens_survive_truncation
 7  The limit. max_seq_length not capped by the table of positions; positions not counted from the padding id; rotary ones capped
    → test_layout::test_max_tokens
    max_seq_length before what the tokenizer is told
    → test_layout::test_what_the_tokenizer_is_told_wins_over_max_seq_length
    The loaded table not looked at
    → test_loading::test_positions_are_seen_in_what_is_read
    Padding on the left, that positions count, not looked for
    → test_loading::test_padding_on_the_left_is_refused_where_it_moves_positions
 8  Baked limits. The file's padding and truncation left on
    → test_tokenizer_files::test_baked_limits_of_the_file_are_gone
 9  A shared tokenizer. One backend for all instances
    → test_tokenizer::test_threads_with_limits_of_their_own_do_not_meet
10  Missing weights. Missing keys not looked at
    → test_loading::test_refuses_missing_weights
    Pickled weights taken
    → test_layout::test_refuses
11  float16. Not refused for Gemma
    → test_traps::test_float16_is_refused_for_gemma
12  dtype. model.to after loading
    → test_loading::test_rotary_tables_stay_in_float32
    The file's own
    → test_loading::test_the_dtype_is_ours_and_not_the_files
13  The head's dtype. bfloat16
    → test_traps::test_the_head_runs_in_float32
14  use_cache. Left as the file has it
    → test_loading::test_nothing_is_cached
15  Masks of length² per text. Batches by count
    → test_traps::test_no_forward_pass_is_above_the_budget
16  NaN in padding. Multiplied by the mask
    → test_head::test_nan_in_padding_and_neighbours_stays_there
17  Dense. No activation means Identity
    → test_layout::test_a_dense_layer_without_activation_has_tanh
    Any activation's path taken
    → test_layout::test_refuses
    A Normalize in between left out
    → test_parity::test_equal_with_layers_after_a_normalize
18  Pooling. The prompt measured with its last special token; weights counted from behind the prompt
    → test_parity::test_equal_with_every_pooling_and_a_prompt
    The prompt pooled of packed texts
    → test_head::test_packed_pooling_is_padded_pooling
    Older keys joined in another order
    → test_layout::test_pooling_old_and_new_keys
19  Truncation. Normalised, then cut
    → test_head::test_truncate_then_normalise
20  Prompts. The default left out
    → test_layout::test_prompts
    passage not spoken of
    → test_layout::test_a_prompt_for_documents_may_be_called_passage
    A double prefix not said
    → test_tokenizer::test_a_text_that_brings_its_prompt_along_is_said_once
    A record's own prompt forgotten
    → test_parity::test_equal_with_a_title_of_each_record
21  modules.json. Any type's last name taken; paths not looked at
    → test_layout::test_refuses
    The first route for documents
    → test_layout::test_a_router_by_its_own_rules
22  The text. Stripped
    → test_tokenizer::test_ids_are_those_of_the_model
    Long ones cut without tokens to spare
    → test_tokenizer::test_long_texts_are_cut_first_and_come_out_the_same
    Lone surrogates let through
    → test_codecs::test_a_prompt_that_cannot_be_made_is_refused
23  NaN before quantisation. Not looked for
    → test_traps::test_what_is_not_finite_is_not_quantised
24  Order and fingerprint. Vectors left as sorted
    → test_traps::test_vectors_come_in_the_order_of_the_texts
    What is used instead of the files not in the fingerprint
    → test_fingerprint::test_digest_sees_what_is_used_instead_of_the_files

Below: what a mutation of data shows better than one of source, and that the list is not out of date.
"""

import ast
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_model import documents, make_tiny_gemma
from workers.encoder.encoder import Encoder
from workers.encoder.layout import Layout
from workers.encoder.packing import Pack
from workers.encoder.quantize import project
from workers.errors import SettingsError
from workers.records import Batch
from workers.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")

WRONG = 1e-2  # what a wrong mask, window, prompt, or order moves at least
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def batch(gemma) -> Batch:
    texts = [*documents(20), "a", " ".join(documents(20)[-3:])]
    return Batch.of([tokens.ids for tokens in Tokenizer(gemma, max_tokens=256).encode(texts)])


def encode(layout: Layout, batch: Batch) -> np.ndarray:
    return Encoder(layout, device="cpu", dtype="float32").encode(batch)


def no_eos(folder: Path, batch: Batch) -> Batch:
    return Batch(np.delete(batch.ids, np.cumsum(batch.lengths) - 1), batch.lengths - 1)


def no_bos(folder: Path, batch: Batch) -> Batch:
    return Batch(np.delete(batch.ids, np.cumsum(batch.lengths) - batch.lengths), batch.lengths - 1)


def reversed_ids(folder: Path, batch: Batch) -> Batch:
    parts = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
    return Batch.of([part[::-1].copy() for part in parts])


def changed(**values: object) -> Callable[[Path, Batch], Batch]:
    def change(folder: Path, batch: Batch) -> Batch:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return batch

    return change


def causal(folder: Path, batch: Batch) -> Batch:
    (folder / "1_Pooling/config.json").write_text('{"embedding_dimension": 64, "pooling_mode": "lasttoken"}')
    return changed(use_bidirectional_attention=False)(folder, batch)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(no_eos, id="eos dropped"),
        pytest.param(no_bos, id="bos dropped"),
        pytest.param(reversed_ids, id="order of tokens"),
        pytest.param(causal, id="causal"),
        pytest.param(changed(sliding_window=18), id="window one wider"),
        pytest.param(changed(sliding_window=14), id="window one narrower"),
        pytest.param(changed(layer_types=["sliding_attention"] * 4), id="no full attention"),
        pytest.param(changed(query_pre_attn_scalar=64), id="another scale"),
    ],
)
def test_a_wrong_variant_is_far_off(gemma, batch, tmp_path, spoil):
    """The premise of every tolerance: texts longer than the window, norms and weights that let nothing cancel out."""
    assert batch.lengths.max() > 2 * 16 and batch.lengths.min() < 8
    expected = encode(Layout.read(gemma), batch)
    folder = shutil.copytree(gemma, tmp_path / "model")
    spoilt = spoil(folder, batch)
    assert np.abs(encode(Layout.read(folder), spoilt) - expected).max() > WRONG


def test_a_short_text_does_not_see_the_window(gemma, tmp_path):
    """Why the texts are long: up to the window's radius, a wrong window changes nothing at all."""
    short = Batch.of([np.arange(300, 306, dtype=np.int32)])
    folder = shutil.copytree(gemma, tmp_path / "model")
    changed(sliding_window=18)(folder, short)
    assert np.array_equal(encode(Layout.read(gemma), short), encode(Layout.read(folder), short))


def test_a_head_left_out_is_far_off(gemma, batch):
    layout = Layout.read(gemma)
    for head in ((), layout.head[:1]):
        assert np.abs(encode(replace(layout, head=head), batch)[:, :64] - encode(layout, batch)).max() > WRONG


def test_float16_is_refused_for_gemma(gemma):
    for kind in ("gemma3_text", "embedding_gemma2_text"):
        with pytest.raises(SettingsError, match="float16 overflows in Gemma"):
            Encoder(replace(Layout.read(gemma), model_type=kind), device="cpu", dtype="float16")


def test_the_head_runs_in_float32(gemma, batch):
    vectors = Encoder(Layout.read(gemma), device="cpu", dtype="bfloat16").encode(batch.slice(0, 6))
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() <= 1e-6


def test_vectors_come_in_the_order_of_the_texts(gemma, batch):
    encoder = Encoder(Layout.read(gemma), device="cpu", dtype="float32")
    together = encoder.encode(batch)
    for row in range(0, len(batch), 5):
        assert np.abs(encoder.encode(batch.slice(row, row + 1))[0] - together[row]).max() <= 5e-6


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_not_finite_is_not_quantised(precision):
    vectors = np.full((2, 8), 0.5, np.float32)
    vectors[1, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        project(vectors, 8, precision)


@pytest.mark.parametrize("padded", [False, True])
def test_no_forward_pass_is_above_the_budget(gemma, batch, monkeypatch, padded):
    """Attention masks take rows × length² bytes: a batch by count, of long texts, would take the memory of many."""
    encoder = Encoder(Layout.read(gemma), device="cpu", dtype="float32", max_batch_tokens=512, padded=padded)
    forward = encoder._forward
    passes: list[Pack] = []

    class Spy:
        name, padded, cost = forward.name, forward.padded, staticmethod(forward.cost)

        def __call__(self, pack: Pack, dim: int) -> Any:
            passes.append(pack)
            return forward(pack, dim)

    monkeypatch.setattr(encoder, "_forward", Spy())
    encoder.encode(batch)
    assert len(passes) > 2 and max(len(pack) for pack in passes) > 1
    assert max(len(pack) * pack.longest if padded else len(pack.ids) for pack in passes) <= 512


def test_the_list_above_names_tests_that_exist():
    named = re.findall(r"(test_\w+)::(test_\w+)", str(__doc__))
    files = {path.stem: path for path in TESTS.rglob("test_*.py")}
    for stem, name in named:
        tree = ast.parse(files[stem].read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{stem}::{name}"
    traps = re.findall(r"^ ?(\d+)  ", str(__doc__), re.MULTILINE)
    assert [int(trap) for trap in traps] == list(range(1, 25))
