"""The model, and how a text becomes its tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings.base import Section, type_count

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class ChunkSettings(Section):
    """How a long text is cut into chunks, with ``overflow: chunk``."""

    tokens: type_count | None = Field(
        None,
        description="Tokens of a chunk at most; prompt and special tokens count. Default: `model.max_tokens`, "
        "else the model's limit.",
    )
    overlap: Annotated[int, Field(ge=0)] = Field(
        0, description="Tokens at a chunk's beginning that are the end of the one before; half of its tokens at most."
    )
    cut: Literal["paragraph", "sentence", "line", "word", "token"] = Field(
        "paragraph",
        description="The coarsest end that a cut looks for in the second half of a chunk. Where there is none, the next finer one "
        "is taken: paragraph, sentence, line, word, token.",
    )
    most: type_count = Field(4096, description="Most chunks of a text; one that would make more is a dead letter.")

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.tokens is not None and 2 * self.overlap > self.tokens:
            raise ValueError(f"overlap ({self.overlap}) is more than half of tokens ({self.tokens})")
        return self


class ModelSettings(Section):
    """Which model, and how a text becomes its tokens."""

    name: str = Field(
        DEFAULT_MODEL,
        description="A local folder in sentence-transformers' layout, a hub id such as `google/embeddinggemma-300m`, "
        "a prefix in an object store (`s3://bucket/model`, `gs://`, `az://`, `abfss://`, `file:///`), or the packaged "
        "`all-MiniLM-L6-v2`.",
    )
    revision: str | None = Field(None, description="The hub revision. Pin it in production.")
    prompt: str | None = Field(
        None,
        description="A name from the model's own prompt table, such as `document`. Fields of the record may stand in it: "
        "`{kind|document}`; it is a template as `source.text` is.",
    )
    prompt_text: str | None = Field(
        None,
        description="A prompt of your own, put before every text, instead of `prompt`. Fields of the record may stand in it: "
        "`title: {title|none} | text: `; it is a template as `source.text` is.",
    )
    max_tokens: type_count | None = Field(
        None, description="Longest text in tokens, special tokens included. Default: the model's own limit."
    )
    overflow: Literal["truncate", "reject", "chunk"] = Field(
        "truncate",
        description="A longer text loses its end, and is counted and flagged (`truncate`), or is a dead letter (`reject`). "
        "`chunk`: every text is cut into chunks, each an output record of its own; one that fits is the only one.",
    )
    chunk: ChunkSettings = ChunkSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Numbers of the forward pass. `auto`: bfloat16 where the GPU or CPU multiplies it and the vectors keep a "
        "cosine of 0.999 to float32's, else float32. float16 is refused for Gemma, whose activations overflow it.",
    )

    task: str | None = Field(
        None,
        description="Which route of a model with several (a Router): `query`, `document`. Default: `document`, else the "
        "model's own.",
    )
    sliding_window: Annotated[int, Field(ge=2, multiple_of=2)] | None = Field(
        None, description="Instead of the number in the model's file, for a copy that an older transformers halved."
    )

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("it is empty; give a folder, a hub id, a URI, or all-MiniLM-L6-v2")
        return name

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.prompt_text is not None:
            raise ValueError("give prompt (a name from the model's table) or prompt_text (the text itself), not both")
        return self

    @model_validator(mode="after")
    def _chunks_agree(self) -> Self:
        if not self.chunked and self.chunk != ChunkSettings():
            raise ValueError(f"chunk says how texts are cut, and overflow is {self.overflow}: set overflow: chunk")
        if self.chunk.tokens and self.max_tokens and self.chunk.tokens > self.max_tokens:
            raise ValueError(f"chunk.tokens ({self.chunk.tokens}) is larger than max_tokens ({self.max_tokens})")
        return self

    @property
    def prompt_by_record(self) -> bool:
        """Whether each record names its prompt, one of the model's own."""
        return self.prompt is not None and "{" in self.prompt

    @property
    def chunked(self) -> bool:
        """Whether a text becomes chunks, each with a vector of its own."""
        return self.overflow == "chunk"
