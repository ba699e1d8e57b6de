"""A tokenizer from the cache is the one from the files; a cache that is wrong in any way is as good as none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_model import MAKERS, documents, make_tiny_gemma
from workers.encoder.layout import resolve
from workers.errors import EnvironmentFault
from workers.text import tokenizer_files as room
from workers.text.tokenizer import Tokenizer
from workers.text.tokenizer_files import Facts, load

pytestmark = pytest.mark.filterwarnings("ignore:::transformers")

TEXTS = [
    *documents(30),
    "",
    " leading\ttab\r\n",
    "NUL \0 é e\u0301 ﬁ 日本語 🙂 \u200b \ufeff",
    "<eos> [SEP] <pad> </s> <|endoftext|> [UNK]",
    "ÄÖÜ İstanbul ΣΑΣ ǅ",
    "don't can't we'll 12345 1,000.5",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """The cache's folder, empty and the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/stream-embedder/tokenizers"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"))


@pytest.fixture
def gemma(made, tmp_path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(made, tmp_path / "model")


@pytest.fixture
def no_transformers(monkeypatch):
    """Called, from then on nothing may be loaded through transformers."""

    def forbidden(folder: Path):
        raise AssertionError("loaded through transformers")

    return lambda: monkeypatch.setattr(room, "_through_transformers", forbidden)


def ids(folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    return [tokens.ids.tolist() for tokens in Tokenizer(folder, max_tokens=64).encode(texts)]


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("kind", ["minilm", *MAKERS])
def test_cold_warm_and_transformers_make_the_same_ids(kind, tmp_path, cache, no_transformers):
    from transformers import AutoTokenizer

    folder = resolve("all-MiniLM-L6-v2") if kind == "minilm" else MAKERS[kind](tmp_path / "model")
    expected = AutoTokenizer.from_pretrained(folder)(TEXTS, truncation=True, max_length=64)["input_ids"]
    cold, facts = ids(folder), load(folder)[1]
    no_transformers()
    assert cold == ids(folder) == expected
    assert load(folder)[1] == facts and set(facts.special_ids) & set(cold[-1])
    assert len(list(cache.iterdir())) == 1


def test_warm_it_needs_neither_torch_nor_transformers(gemma):
    code = (
        "import sys; from pathlib import Path; from workers.text.tokenizer import Tokenizer;"
        f"print(Tokenizer(Path({str(gemma)!r}), max_tokens=64).encode(['a text'])[0].ids.tolist());"
        "sys.exit(' '.join({'torch', 'transformers', 'ray', 'kafka', 'orjson'} & set(sys.modules)) or 0)"
    )

    def run() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    cold, warm = run(), run()
    assert "transformers" in cold.stderr  # the premise: it is what a cold one imports
    assert warm.returncode == 0, warm.stderr
    assert warm.stdout == cold.stdout != ""


def damage(entry: Path, how: str) -> None:
    content = entry.read_bytes()
    match how:
        case "cut off":
            entry.write_bytes(content[: len(content) // 2])
        case "empty":
            entry.write_bytes(b"")
        case "a changed byte":
            entry.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
        case "not ours":
            entry.write_bytes(b"[1, 2]\n" + content)
        case "other facts":
            header, _, rest = content.partition(b"\n")
            entry.write_bytes(json.dumps({**json.loads(header), "new": 1}).encode() + b"\n" + rest)
        case "a folder":
            entry.unlink()
            (entry / "inside").mkdir(parents=True)


@pytest.mark.parametrize("how", ["cut off", "empty", "a changed byte", "not ours", "other facts", "a folder"])
def test_a_damaged_entry_is_as_good_as_none(gemma, cache, how):
    expected = ids(gemma)
    (entry,) = cache.iterdir()
    damage(entry, how)
    assert ids(gemma) == expected
    if how != "a folder":
        assert len(entry.read_bytes()) > 1000  # and written anew
    assert list(cache.iterdir()) == [entry]  # nothing is left of the attempt


@pytest.mark.parametrize("where", ["below a file", "nowhere", "relative"])
def test_without_a_place_for_a_cache_it_works_as_well(gemma, tmp_path, monkeypatch, where):
    (tmp_path / "file").touch()
    home = {"below a file": str(tmp_path / "file"), "nowhere": "/proc/absent", "relative": "some/where"}[where]
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/proc/absent")
    monkeypatch.chdir(tmp_path)
    assert ids(gemma) == ids(gemma) != []
    assert not (tmp_path / "some").exists()


def test_without_a_home_it_works_as_well(gemma, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert ids(gemma) != []


def test_the_cache_is_in_the_users_folder(gemma, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load(gemma)
    (entry,) = (tmp_path / "home/.cache/stream-embedder/tokenizers").iterdir()
    assert entry.name.startswith("1-")
    assert (entry.stat().st_mode & 0o077, entry.parent.stat().st_mode & 0o077) == (0, 0)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json", "vocab.bpe"])
def test_another_file_is_another_entry(gemma, cache, name):
    load(gemma)
    path = gemma / name
    path.write_text((path.read_text() if path.exists() else "") + " ")
    load(gemma)
    assert len(list(cache.iterdir())) == 2


def test_weights_do_not_count(gemma, cache, no_transformers):
    load(gemma)
    no_transformers()
    (gemma / "model.safetensors").write_bytes(b"other")
    load(gemma)


def test_another_version_is_another_entry(gemma, cache, monkeypatch):
    load(gemma)
    version = room.metadata.version
    monkeypatch.setattr(room.metadata, "version", lambda name: version(name) + ("+1" if name == "tokenizers" else ""))
    load(gemma)
    assert len(list(cache.iterdir())) == 2


def test_what_was_not_read_for_longest_goes(gemma, cache, monkeypatch):
    monkeypatch.setattr(room, "_MOST_ENTRIES", 2)
    load(gemma)
    (first,) = cache.iterdir()
    plain = (gemma / "tokenizer_config.json").read_text()
    for number in range(3):
        change(gemma / "tokenizer_config.json", number=number)
        load(gemma)
        for age, path in enumerate(sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)):
            os.utime(path, (1000 - age, 1000 - age))  # a clock that is coarse would not tell them apart
        (gemma / "tokenizer_config.json").write_text(plain)
        load(gemma)
    assert len(list(cache.iterdir())) == 2 and first.exists()


def test_an_entry_that_would_make_other_ids_is_not_kept(gemma, cache, monkeypatch):
    class Forgetful:
        """A tokenizer whose serialisation lacks something."""

        @staticmethod
        def from_str(content: str):
            whole = type(load(gemma)[0]).from_str(content)
            whole.normalizer = room.tokenizers.normalizers.Lowercase()
            return whole

    with monkeypatch.context() as patch:
        patch.setattr(room, "_entry", lambda folder: None)
        backend, facts = load(gemma)
    with monkeypatch.context() as patch:
        patch.setattr(room.tokenizers, "Tokenizer", Forgetful)
        patch.setattr(room, "_SAMPLES", ("UPPER",))
        patch.setattr(room, "_entry", lambda folder: None)
        room._write(cache / "1-x", backend, facts)
    assert not cache.exists()


# ---- what the files say


def test_baked_limits_of_the_file_are_gone():
    hi, long = Tokenizer(resolve("all-MiniLM-L6-v2"), max_tokens=256).encode(["hi", "word " * 400])
    assert (len(hi.ids), len(long.ids), long.total) == (3, 256, 402)


@pytest.mark.parametrize("warm", [False, True])
def test_what_is_cut_on_the_left_keeps_its_end(gemma, warm):
    from transformers import AutoTokenizer

    change(gemma / "tokenizer_config.json", truncation_side="left")
    words = " ".join(documents(60))
    texts = ["short", words, words * 3]
    if warm:
        load(gemma)
    results = Tokenizer(gemma, max_tokens=32).encode(texts)
    expected = AutoTokenizer.from_pretrained(gemma)(texts, truncation=True, max_length=32)["input_ids"]
    assert [tokens.ids.tolist() for tokens in results] == expected
    assert [tokens.truncated for tokens in results] == [False, True, True]


@pytest.mark.parametrize("warm", [False, True])
def test_special_tokens_in_a_text_may_be_text(gemma, warm):
    from transformers import AutoTokenizer

    text = ["a <eos> in <pad> a text"]
    as_specials = ids(gemma, text)
    change(gemma / "tokenizer_config.json", split_special_tokens=True)
    if warm:
        load(gemma)
    expected = AutoTokenizer.from_pretrained(gemma)(text)["input_ids"]
    assert ids(gemma, text) == expected != as_specials


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_refuses_a_file_that_does_not_add_what_is_declared(gemma, cache, name):
    content = json.loads((gemma / "tokenizer.json").read_text())
    single = content["post_processor"]["single"]
    content["post_processor"]["single"] = [
        part for part in single if part.get("SpecialToken", {}).get("id") != f"<{name}>"
    ]
    (gemma / "tokenizer.json").write_text(json.dumps(content))
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match=f"declares add_{name}_token"):
            Tokenizer(gemma, max_tokens=64)
    assert not cache.exists()


def test_refuses_token_types_that_the_model_would_not_get(tmp_path):
    folder = MAKERS["bert"](tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["single"][-1]["SpecialToken"]["type_id"] = 2
    (folder / "tokenizer.json").write_text(json.dumps(content))
    # The class of this name makes its own post-processor; the plain one takes the file's.
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    change(folder / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    with pytest.raises(EnvironmentFault, match="token type other than 0"):
        Tokenizer(folder, max_tokens=64)


def test_refuses_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(EnvironmentFault, match=r"no tokenizer\.json"):
        Tokenizer(tmp_path, max_tokens=64)


def test_refuses_a_broken_file_in_one_sentence(gemma):
    (gemma / "tokenizer.json").write_text("{")
    with pytest.raises(EnvironmentFault, match="no tokenizer that loads") as error:
        Tokenizer(gemma, max_tokens=64)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change_in", [{"rms_norm_eps": "x"}, {"dtype": "nonsense"}])
def test_a_broken_configuration_is_not_the_tokenizers_fault(gemma, change_in):
    change(gemma / "config.json", **change_in)
    with pytest.raises(EnvironmentFault, match=r"config\.json is not understood: .*(rms_norm_eps|nonsense)") as error:
        Tokenizer(gemma, max_tokens=64)
    assert "\n" not in str(error.value)


def test_facts_are_what_they_are_by_default(gemma):
    assert load(gemma)[1] == Facts(special_ids=(0, 1, 2, 3, 4))
