"""``stream-embedder encode`` with the packaged model, as a shell sees it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from pipelines.encode import run_encode
from tests.tiny_model import documents, make_tiny_bert, make_tiny_gemma
from workers.settings import Settings

ROOT = Path(__file__).parents[2]
FIELDS = ["id", "embedding", "dim", "precision", "model", "fingerprint", "tokens", "truncated"]


def encode(
    *texts: str,
    lines: bytes | None = None,
    dim: int | None = None,
    precision: str = "float32",
    ranges: Path | None = None,
    text: str = "{text}",
    **model: str,
):
    """The command without its process: records of texts, or of lines."""
    out = io.BytesIO()
    source = None if lines is None else io.BytesIO(lines)
    settings = Settings(model=model, source={"text": text})
    code = run_encode(settings, dim=dim, precision=precision, ranges=ranges, texts=texts, lines=source, out=out)
    assert code == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def stream_embedder(*arguments: str, lines: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "pipelines", "encode", *arguments]
    return subprocess.run(command, input=lines, cwd=ROOT, capture_output=True, timeout=180, check=False)


def vectors(records: list[dict]) -> np.ndarray:
    return np.array([record["embedding"] for record in records], np.float32)


def test_arguments_become_records_in_order():
    result = stream_embedder(
        "a cat on a mat", "--pool.max_batch_tokens", "512", "feline on a rug", "interest rates rose"
    )
    assert (result.returncode, result.stderr) == (0, b"")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [list(record) for record in records] == [FIELDS] * 3
    assert [record["id"] for record in records] == ["1", "2", "3"]
    first = records[0]
    assert (first["dim"], first["precision"], first["model"]) == (384, "float32", "all-MiniLM-L6-v2")
    assert (first["tokens"], first["truncated"]) == (7, False)
    found = vectors(records)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]


def test_200_texts_have_the_vectors_of_sentence_transformers_whole_and_cut():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import normalize_embeddings, truncate_embeddings

    from workers.encoder.hub import resolve

    texts = [*(text[: 4 + 2 * (n % 100)] for n, text in enumerate(documents(199))), "word " * 400]
    lines = b"\n".join(json.dumps({"text": text}).encode() for text in texts)
    result = stream_embedder("--model.dtype", "float32", lines=lines)
    assert (result.returncode, result.stderr) == (0, b"")
    whole = [json.loads(line) for line in result.stdout.splitlines()]
    assert len({record["tokens"] for record in whole}) > 40 and whole[-1]["truncated"]  # the premise: mixed lengths

    theirs = SentenceTransformer(str(resolve("all-MiniLM-L6-v2")), device="cpu").encode(texts, convert_to_tensor=True)
    for dim, ours in ((384, whole), (64, encode(lines=lines, dim=64, dtype="float32"))):
        expected = normalize_embeddings(truncate_embeddings(theirs, dim)).numpy()
        assert vectors(ours).shape == expected.shape == (200, dim)
        assert np.abs(vectors(ours) - expected).max() <= 1e-6


def test_dim_and_precision():
    whole = encode("a text")
    (cut,) = encode("a text", dim=64, precision="float16")
    assert (cut["dim"], cut["precision"], len(cut["embedding"])) == (64, "float16", 64)
    assert cut["fingerprint"] != whole[0]["fingerprint"]
    expected = vectors(whole)[0, :64]
    expected /= np.linalg.norm(expected)
    found = np.array(cut["embedding"], np.float16)
    assert found == pytest.approx(expected, abs=1e-3)
    assert all(len(str(number).lstrip("-0.")) <= 6 for number in cut["embedding"]), "digits of a float16, no more"


@pytest.mark.parametrize("precision", ["int8", "binary", "ubinary"])
def test_fewer_bits(precision: str):
    whole, other = encode("a cat on a mat", "interest rates rose", dim=64)
    found = encode("a cat on a mat", "interest rates rose", dim=64, precision=precision)
    assert [(record["dim"], record["precision"]) for record in found] == [(64, precision)] * 2
    values = np.array([record["embedding"] for record in found])
    expected = vectors([whole, other])
    if precision == "int8":
        scales = np.array([[record["scale"]] for record in found])
        assert values * scales == pytest.approx(expected, abs=scales.max() * 0.51)
    else:
        bytes_ = (values + 128 if precision == "binary" else values).astype(np.uint8)
        assert np.array_equal(np.unpackbits(bytes_, axis=1), expected > 0)
    assert len({record["fingerprint"] for record in [whole, *found]}) == 2


def test_a_vector_without_length_in_its_first_dimensions_is_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch):
    from workers.encoder.encoder import Encoder

    def flat(self: Encoder, batch: object, dim: int) -> np.ndarray:
        return np.array([[np.nan, np.nan], [1, 0]], np.float32)  # what the head makes of a row without a direction

    monkeypatch.setattr(Encoder, "encode", flat)
    refused, sound = encode("a", "b", dim=2, precision="int8")
    assert refused == {"id": "1", "error": "the model gave no vector of finite, unit length for the text"}
    assert sound["embedding"] == [127, 0]


def test_lines_keep_their_ids_and_mistakes_stay_in_line():
    lines = [
        b'{"text": "a cat on a mat"}',
        b'{"text": "a cat on a mat", "id": "cat", "title": "ignored"}',
        b'{"text": "a cat on a mat", "id": 17}',
        b"",
        b"not json SENTINEL",
        b'["SENTINEL"]',
        b'{"id": "none", "txt": "SENTINEL"}',
        b'{"id": "number", "text": 5}',
        b'{"id": "blank", "text": " \\n"}',
        b'{"id": "half", "text": "SENTINEL \\ud800"}',
        b'{"id": "latin", "text": "SENTINEL \xff"}',
        b'{"id": {"SENTINEL": 1}, "text": "x"}',
        b'{"id": "long", "text": "' + b"SENTINEL " * 400 + b'"}',
        b'{"id": "last", "text": "interest rates rose"}',
    ]
    records = encode(overflow="reject", lines=b"\n".join(lines))
    names = ["1", "cat", "17", "5", "6", "none", "number", "blank", "half", "11", "12", "long", "last"]
    assert [record["id"] for record in records] == names
    refused = [record for record in records if "error" in record]
    assert [record["id"] for record in refused] == names[3:-1]
    assert all(list(record) == ["id", "error"] and record["error"] for record in refused)
    assert "SENTINEL" not in json.dumps(refused)
    # The neighbours of a refused text have the vectors that they would have had without it.
    assert vectors(records[:3]) == pytest.approx(vectors(records[:1]).repeat(3, axis=0), abs=1e-6)


def test_more_lines_than_a_window_holds():
    lines = b"\n".join(
        json.dumps({"id": f"n{number}", "text": f"text number {number}"}).encode() for number in range(600)
    )
    records = encode(dim=8, lines=lines)
    assert [record["id"] for record in records] == [f"n{number}" for number in range(600)]


def test_a_prompt_moves_the_vector_and_its_fingerprint():
    (plain,) = encode("a text")
    (prompted,) = encode("a text", prompt_text="query: ")
    assert prompted["fingerprint"] != plain["fingerprint"]
    assert vectors([prompted])[0] @ vectors([plain])[0] < 0.999


def test_a_line_may_bring_the_title_that_its_prompt_speaks_of():
    template = "title: {title|none} | text: "
    lines = b'{"text": "a text", "title": "A title"}\n{"text": "a text"}\n{"text": "a text", "title": []}'
    titled, untitled, refused = encode(lines=lines, prompt_text=template)
    assert refused == {"id": "3", "error": "field title is a list, which is not taken here"}
    literal = [encode("a text", prompt_text=f"title: {title} | text: ")[0] for title in ("A title", "none")]
    assert vectors([titled, untitled]) == pytest.approx(vectors(literal), abs=1e-6)
    assert len({record["fingerprint"] for record in (titled, untitled)}) == 1
    assert titled["fingerprint"] not in {record["fingerprint"] for record in literal}
    (argument,) = encode("a text", prompt_text=template)
    assert argument["embedding"] == pytest.approx(untitled["embedding"], abs=1e-6)
    (refused,) = encode("a text", prompt_text="title: {title} | text: ")
    assert refused["error"] == "field title is missing or null, and has no default"


def test_a_line_may_name_its_prompt(tmp_path: Path):
    name = str(make_tiny_gemma(tmp_path / "model"))
    lines = b'{"text": "a text", "kind": "query"}\n{"text": "a text"}\n{"text": "a text", "kind": "SENTINEL"}'
    asked, told, refused = encode(lines=lines, name=name, prompt="{kind|document}")
    assert refused["error"].startswith("the record names a prompt that the model does not have; it has ")
    assert "SENTINEL" not in refused["error"]
    fixed = [encode("a text", name=name, prompt=prompt)[0] for prompt in ("query", "document")]
    assert vectors([asked, told]) == pytest.approx(vectors(fixed), abs=1e-6)
    assert len({record["fingerprint"] for record in (asked, told)}) == 1
    (argument,) = encode("a text", name=name, prompt="{kind|document}")
    assert argument["embedding"] == pytest.approx(told["embedding"], abs=1e-6)


def test_lines_are_read_as_the_source_says():
    lines = b'{"title": "a cat", "body": "on a mat"}\n{"text": "a cat on a mat"}'
    read, refused = encode(lines=lines, text="{title} {body}")
    (argument,) = encode("a cat on a mat", text="{title} {body}")
    assert read["embedding"] == pytest.approx(argument["embedding"], abs=1e-6)
    assert read["fingerprint"] == argument["fingerprint"] != encode("a")[0]["fingerprint"]
    assert refused == {"id": "2", "error": "field title is missing or null, and has no default"}


def test_a_text_that_the_tokenizer_fails_at_is_a_line_of_its_own(tmp_path: Path):
    """A WordPiece without [UNK] raises at a word that it does not have; an added token may be past the model's table."""
    folder = make_tiny_bert(tmp_path)
    path = folder / "tokenizer.json"
    with_new = tokenizers.Tokenizer.from_file(str(path))
    with_new.add_tokens(["<new>"])
    content = json.loads(with_new.to_str())
    content["model"]["unk_token"] = "[GONE]"
    path.write_text(json.dumps(content))
    # The class of the old name makes its own tokenizer; the plain one takes the file's.
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain))
    sound, unknown, beyond, other = encode("a text", "SENTINEL \u2603", "a <new> text", "the text", name=str(folder))
    assert unknown == {"id": "2", "error": "the model's tokenizer fails at the text"}
    assert beyond == {"id": "3", "error": "the text holds a token that the tokenizer has and the model not"}
    assert len(sound["embedding"]) == len(other["embedding"]) == 32


def test_braces_that_are_meant_are_quoted_in_a_prompt():
    (record,) = encode("a text", prompt_text="{{ '{query}' }} ")
    (plain,) = encode("{query} a text")
    assert record["embedding"] == pytest.approx(plain["embedding"], abs=1e-6)


def test_lines_come_from_standard_input():
    result = stream_embedder("--dim", "4", lines=b'{"text": "a text", "id": "one"}\nnot json\n')
    assert (result.returncode, result.stderr) == (0, b"")
    first, second = [json.loads(line) for line in result.stdout.splitlines()]
    assert (first["id"], first["dim"], len(first["embedding"])) == ("one", 4, 4)
    assert second == {"id": "2", "error": "the value is not JSON: line 1, column 1 is wrong"}


def test_an_argument_that_is_not_utf8_is_refused():
    (record,) = encode("caf\udce9")
    assert list(record) == ["id", "error"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--dim", "385", "x"], 2, b"--dim (385) is larger than the 384 dimensions of all-MiniLM-L6-v2"),
        (["--model.max_tokens", "512", "x"], 2, b"larger than the 256 tokens"),
        (["--model.name", "./absent", "x"], 1, b"no such folder"),
        (["--model.name", "~nosuchuser/x", "x"], 1, b"no such folder"),
        (["--model.name", "n" * 300, "x"], 1, b"no hub model has this name"),
        (["--model.name", "", "x"], 2, b"it is empty; give a folder"),
        (["--precision", "int8_ranges", "--ranges", "~nosuchuser/x", "x"], 2, b"there is no such user"),
    ],
)
def test_what_cannot_work_is_a_sentence(arguments: list[str], code: int, says: bytes):
    result = stream_embedder(*arguments)
    assert result.returncode == code
    assert result.stderr.startswith(b"stream-embedder: ") and says in result.stderr
    assert result.stdout == b""
    assert len(result.stderr.splitlines()) == 1
