"""The model that the settings name, opened once for whoever needs a part of it: tokenizer, encoder, fingerprints.

Comes in: settings. Goes out: the layout and what the settings make of it. Never here: torch, until an encoder is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.fit import against_model
from workers import fingerprint, log
from workers.codecs import prompt_template
from workers.codecs.template import Template, parse_text
from workers.encoder.hub import resolve, short_name
from workers.encoder.layout import Layout, prompt_advice, prompt_for
from workers.encoder.quantize import Projection
from workers.encoder.ranges import Ranges
from workers.errors import SettingsError
from workers.settings import ModelSettings, Settings, Vectors

if TYPE_CHECKING:
    from workers.encoder.encoder import Encoder
    from workers.text.tokenizer import Tokenizer


LOG = log.get(__name__)


@cache
def _advise(advice: str) -> None:
    LOG.warning(advice)  # once in a process, however often it opens the model


@dataclass(frozen=True)
class Model:
    """A model on disk, as the settings use it."""

    settings: Settings
    layout: Layout

    @classmethod
    def open(cls, settings: Settings, *, download: bool = True) -> Model:
        """Find the model and hold the settings against it.

        Raises:
            EnvironmentFault: the model is not there (without ``download``: on this machine), or not one that we run.
            SettingsError: dim, max_tokens, task or prompt do not suit it.
        """
        chosen = settings.model
        layout = Layout.read(
            resolve(chosen.name, chosen.revision, download=download),
            task=chosen.task,
            sliding_window=chosen.sliding_window,
        )
        against_model(settings, layout)
        if (advice := prompt_advice(layout, chosen.prompt, chosen.prompt_text)) is not None:
            _advise(f"{chosen.name}: {advice}")
        return cls(settings, layout)

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return self.layout.folder

    @property
    def name(self) -> str:
        """The model's name on output records: the hub id, or the last part of a folder or URI."""
        return short_name(self.settings.model.name)

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens: the settings' choice, else the model's limit."""
        return self.settings.model.max_tokens or self.layout.max_tokens

    @property
    def text_tokens(self) -> int:
        """Longest text in tokens that an encoder sees: a chunk's, where texts are cut into those."""
        return self.settings.model.chunk.tokens or self.max_tokens

    @cached_property
    def prompt_template(self) -> Template | None:
        """What makes each text's prompt of its record's fields; None where all texts have the same."""
        return prompt_template(self.settings.model, self.layout.prompts)

    @cached_property
    def prompt(self) -> str:
        """The text that goes before every text that has none of its own; of a template, what it says without fields."""
        if (template := self.prompt_template) is not None:
            return template.render({}) if template.has_defaults else ""
        prompt = self._prompt_of(self.settings.model)
        assert isinstance(prompt, str)
        return prompt

    @cached_property
    def digest(self) -> str:
        """Hash of the files that decide a vector, and of what the settings change in them."""
        return fingerprint.model_digest(self.folder, route=self.layout.route, sliding_window=self.layout.sliding_window)

    def dim(self, output: Vectors) -> int:
        """An output's dimensions."""
        return output.dim or self.layout.dim

    @property
    def widest(self) -> int:
        """The most dimensions that any output wants: what encoders send back."""
        return max((self.dim(output) for output in self.settings.outputs), default=self.layout.dim)

    def projection(self, output: Vectors) -> Projection:
        """What an output makes of the model's vectors.

        Raises:
            EnvironmentFault: its ranges cannot be read.
            SettingsError: they belong to other vectors than these settings make.
        """
        dim, ranges = self.dim(output), None
        if output.ranges is not None:
            try:
                path = output.ranges.expanduser()
            except RuntimeError:
                raise SettingsError(f"ranges {output.ranges}: there is no such user") from None
            ranges = Ranges.read(path)
            ranges.require(path, dim=dim, space=self.fingerprint(dim, "float32"), model=self.name)
        return Projection(dim, output.precision, ranges)

    def fingerprint_of(self, projection: Projection) -> str:
        """Names the vector space of an output."""
        ranges = None if projection.ranges is None else projection.ranges.digest
        return self.fingerprint(projection.dim, projection.precision, ranges)

    def fingerprint(self, dim: int, precision: str, ranges: str | None = None) -> str:
        """Names a vector space; ``ranges``: digest of those that it is quantised by."""
        return fingerprint.fingerprint(
            self.digest,
            prompt=self._prompt_of(self.settings.model),
            template=self.settings.source.text if self.settings.source.format != "text" else "",
            max_tokens=self.max_tokens,
            overflow=self._overflow(),
            dim=dim,
            precision=precision,
            ranges=ranges,
            mappings=self._mappings(),
        )

    def _overflow(self) -> str | tuple[str | int, ...]:
        """What happens to a text that is too long, with all that decides where it is cut."""
        from workers.text.chunks import VERSION  # noqa: PLC0415 - numpy comes along, and config does without

        chosen = self.settings.model
        if not chosen.chunked:
            return chosen.overflow
        return chosen.overflow, VERSION, self.text_tokens, chosen.chunk.overlap, chosen.chunk.cut

    def _prompt_of(self, chosen: ModelSettings) -> str | tuple[str, ...]:
        """What decides the prompts of texts: the prompt of all, or what makes each of its record's fields."""
        if chosen.prompt_by_record:
            return str(chosen.prompt), *(part for each in sorted(self.layout.prompts.items()) for part in each)
        if prompt_template(chosen) is not None:
            return (chosen.prompt_text or "",)
        text = None if chosen.prompt_text is None else parse_text(chosen.prompt_text).render({})
        return prompt_for(self.layout, chosen.prompt, text)

    def _mappings(self) -> list[tuple[str, str | tuple[str, ...] | None]]:
        """The templates and prompts of topics that have their own, each pair once, in an order that is always the same."""
        source = self.settings.source
        every = [source, *map(source.mapped, source.mappings)]
        texts = [each.text if each.format != "text" else "" for each in every]
        prompts = (self._mapped_prompt(number) for number in range(len(source.mappings)))
        pairs = zip(texts[1:], prompts, strict=True)
        return sorted(set(pairs) - {(texts[0], None)}, key=repr)

    def _mapped_prompt(self, number: int) -> str | tuple[str, ...] | None:
        """The prompt of a mapping: of a text as it is written, by its name what that stands for; None: it has none of its own."""
        mapping = self.settings.source.mappings[number]
        if mapping.prompt is None:
            return mapping.prompt_text
        prompt = self._prompt_of(self.settings.of(number).model)
        # One with a brace would be taken for a template that is written so.
        return (prompt,) if isinstance(prompt, str) and "{" in prompt else prompt

    def tokenizer(self) -> Tokenizer:
        """A tokenizer for one thread; where texts are cut into chunks, one that does that."""
        from workers.text.chunking import ChunkingTokenizer  # noqa: PLC0415 - heavy
        from workers.text.chunks import Windows  # noqa: PLC0415
        from workers.text.tokenizer import Tokenizer  # noqa: PLC0415

        layout, chunk = self.layout, self.settings.model.chunk
        about: dict[str, Any] = {
            "prompt": self.prompt,
            "lower_case": layout.lower_case,
            "vocabulary": layout.vocabulary,
        }
        if not self.settings.model.chunked:
            return Tokenizer(layout.transformer, max_tokens=self.max_tokens, **about)
        windows = Windows(self.text_tokens, chunk.overlap, chunk.cut, chunk.most)
        return ChunkingTokenizer(layout.transformer, windows=windows, **about)

    def encoder(self, *, cuda: bool | None = None, threads: int | None = None) -> Encoder:
        """An encoder in this process: weights loaded, not yet warmed up or tested. ``cuda`` None: where there is one."""
        from workers.encoder.encoder import Encoder, has_cuda  # noqa: PLC0415 - heavy

        if cuda is None:
            cuda = has_cuda()
        return Encoder(
            replace(self.layout, max_tokens=self.text_tokens),
            device="cuda" if cuda else "cpu",
            dtype=self.settings.model.dtype,
            max_batch_tokens=self.settings.pool.batch_tokens(cuda=cuda),
            prompt_tokens=self.tokenizer().prompt_tokens,
            threads=threads,
        )
