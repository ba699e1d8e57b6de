"""A batch job's outputs: what each makes of a vector, where its files go, and what of them is there.

Comes in: a model with its settings. Goes out: outlets, which need no connection until they are asked for one. Never here: a
vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipelines.batch.finished import Lying, PieceName, folder_of, lying, settings_digest
from pipelines.model import Model
from workers.codecs import rows_for
from workers.codecs.parquet import ParquetRenderer, read_notes
from workers.encoder.quantize import Projection
from workers.object_store import Location, ObjectStore
from workers.settings import ParquetOutput, Settings, SourceSettings
from workers.sinks.chain import Chain


@dataclass(frozen=True)
class BatchOutlet:
    """One output; a :class:`workers.outlets.RowOutlet`, and the place of its files: ``folder`` below ``location``."""

    name: str
    projection: Projection
    renderer: ParquetRenderer
    location: Location
    folder: str

    @property
    def whole(self) -> ParquetRenderer | None:
        """See :class:`workers.outlets.RowOutlet`."""
        return self.renderer if self.renderer.together else None

    @cached_property
    def store(self) -> ObjectStore:
        """Where its files go."""
        return ObjectStore(self.location, writing=True)


def batch_outlets(model: Model) -> list[BatchOutlet]:
    """The outputs that the settings name.

    Raises:
        EnvironmentFault, SettingsError: see :meth:`pipelines.model.Model.projection`.
    """
    found = []
    for output in model.settings.outputs:
        assert isinstance(output, ParquetOutput)  # require_batch came before
        projection = model.projection(output)
        fingerprint = model.fingerprint_of(projection)
        source = model.settings.source
        included = [(name, source.include.get(name, name), output.types.get(name)) for name in output.include]
        if output.chunk_text:
            included.append(("chunk_text", "", None))
        if output.together:
            included.append(("chunks", "", None))
        folder = folder_of(
            settings_digest(fingerprint, source.id, source.empty, included, *_mapped(source, output.include))
        )
        renderer = rows_for(
            output, dim=projection.dim, model=model.name, fingerprint=fingerprint, chunked=model.settings.model.chunked
        )
        found.append(BatchOutlet(output.name, projection, renderer, Location.parse(output.uri), folder))
    return found


def dead_letter_location(settings: Settings) -> Location:
    """Where refused rows go."""
    if settings.dead_letter.uri is not None:
        return Location.parse(settings.dead_letter.uri)
    first = settings.outputs[0]
    assert isinstance(first, ParquetOutput)
    above = Location.parse(first.uri)
    return Location(above.scheme, above.bucket, f"{above.prefix or 'vectors'}-dead-letters")


def dead_letter_folder(model: Model) -> str:
    """The folder of the rows that were refused with these settings; outputs that come later share it."""
    source = model.settings.source
    fingerprint = model.fingerprint(model.layout.dim, "float32")
    return folder_of(settings_digest(fingerprint, source.id, source.empty, *_mapped(source)))


def _mapped(source: SourceSettings, include: Sequence[str] = ()) -> list[object]:
    """What decides about rows of topics that have mappings: of each whose rows they are, and what they are made of.

    A fingerprint knows the templates and prompts, and not whose they are. Without mappings nothing is told.
    """
    told: list[object] = []
    for mapping in source.mappings:
        own = source.mapped(mapping)
        topics, fields = sorted(mapping.topics), [own.include.get(name, name) for name in include]
        told.append((topics, mapping.pattern, own.text, mapping.prompt, mapping.prompt_text, own.id, own.empty, fields))
    return told


def probe(settings: Settings, location: Location) -> None:
    """Find out whether a store takes files as a job needs it to.

    Raises:
        EnvironmentFault: it does not; the sentence says what is missing.
    """
    Chain(location, read_notes, lambda _: "", group=settings.source.group, fingerprint="").probe()


def lying_in(
    outlets: Sequence[BatchOutlet], named: Mapping[str, tuple[str, str]], *, any_settings: bool
) -> list[dict[PieceName, Lying]]:
    """What lies in each output; see :func:`pipelines.batch.finished.lying`."""
    return [lying(outlet.store, outlet.folder, named, any_settings=any_settings) for outlet in outlets]
