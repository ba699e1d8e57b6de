"""The model, and how a text becomes its tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.settings.base import Section, type_count

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class ModelSettings(Section):
    """Which model, and how a text becomes its tokens."""

    name: str = Field(
        DEFAULT_MODEL,
        description="A local folder in sentence-transformers' layout, a hub id such as `google/embeddinggemma-300m`, "
        "a prefix in an object store (`s3://bucket/model`, `gs://`, `az://`, `abfss://`, `file:///`), or the packaged "
        "`all-MiniLM-L6-v2`.",
    )
    revision: str | None = Field(None, description="The hub revision. Pin it in production.")
    prompt: str | None = Field(None, description="A name from the model's own prompt table, such as `document`.")
    prompt_text: str | None = Field(
        None,
        description="A prompt of your own, put before every text, instead of `prompt`. Fields of the record may stand in it: "
        "`title: {title|none} | text: `; it is a template as `source.text` is.",
    )
    max_tokens: type_count | None = Field(
        None, description="Longest text in tokens, special tokens included. Default: the model's own limit."
    )
    overflow: Literal["truncate", "reject"] = Field(
        "truncate", description="A longer text is cut, counted and flagged (`truncate`) or a dead letter (`reject`)."
    )
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
