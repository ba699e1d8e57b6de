"""The command ``search``: questions in, the nearest of an output's vectors out.

Comes in: settings, a place and questions. Goes out: ids, scores and what was included, on standard output. Never here: an index:
each vector is looked at, which is exact, and for trying.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.arguments import PROGRAM, Arguments
from pipelines.model import Model
from pipelines.search.places import Files, TopicRecords
from pipelines.search.questions import cosines, embed_questions, for_questions
from pipelines.search.ranking import Hit, Ranking
from workers.codecs.stored import Space
from workers.encoder.quantize import WITH_RANGES, Quantized, has_direction, project
from workers.encoder.ranges import Ranges
from workers.encoder.restore import restore
from workers.errors import EnvironmentFault, PoisonError, SettingsError
from workers.records import type_vectors
from workers.settings import KafkaOutput, Settings

LINE = 120


def from_line(settings: Settings, arguments: Arguments) -> int:
    """Run what a command line asks for; see :func:`run_search`."""
    options = arguments.options
    return run_search(
        settings,
        arguments.words,
        where=getattr(options, "in"),
        topic=options.topic,
        top=options.top,
        ranges=options.ranges,
        prompt_text=options.prompt_text,
        any_fingerprint=options.any_fingerprint,
        as_json=options.json,
    )


def run_search(
    settings: Settings,
    questions: Sequence[str],
    *,
    where: str | None = None,
    topic: str | None = None,
    top: int | None = None,
    ranges: Path | None = None,
    prompt_text: str | None = None,
    any_fingerprint: bool = False,
    as_json: bool = False,
) -> int:
    """Print the ``top`` vectors nearest to each question, of the files at ``where`` or of ``topic``.

    With neither, those of the settings' only output. ``ranges``: of vectors in a precision that needs them; by default those of
    the settings' outputs. ``any_fingerprint``: take vectors of the same model and dims, however else they were made.

    Raises:
        SettingsError: the vectors are another model's, or made otherwise; or the arguments do not suit each other.
        EnvironmentFault: there are no vectors there, or they or the model cannot be read.
        RetryableError: the broker or the schema registry does not answer now.
    """
    if not questions or not all(question.strip() for question in questions):
        raise SettingsError("search needs a question, as an argument that is not empty")
    place = _place(settings, where, topic)
    asked = _Asked(settings, questions, ranges, prompt_text, any_fingerprint=any_fingerprint)
    ranking = Ranking(asked.compare)
    for rows in place:
        ranking.add(rows)
    if ranking.foreign:
        raise SettingsError(asked.complaint(place.name, len(ranking), ranking.foreign))
    if not len(ranking):
        raise EnvironmentFault(f"{place.name} holds no vectors{' of ours' if place.others else ''}")
    answers = ranking.best(top or 5)
    if as_json:
        _print_json(questions, answers)
    else:
        _print(questions, answers)
        print(f"\n{_looked(ranking.spaces)}")
    if place.others:
        what = "is no embedding of ours, and was" if place.others == 1 else "are no embeddings of ours, and were"
        print(
            f"{PROGRAM}: warning: {place.others:,} of the records of {place.name} {what} passed over", file=sys.stderr
        )
    return 0


def _place(settings: Settings, where: str | None, topic: str | None) -> Files | TopicRecords:
    if where is not None and topic is not None:
        raise SettingsError("--in and --topic name two places: search looks at one")
    if where is not None:
        return Files(where)
    if topic is not None:
        return TopicRecords(settings, topic)
    if len(settings.outputs) != 1:
        what = "the settings have no output" if not settings.outputs else "the settings have several outputs"
        raise SettingsError(f"search needs a place, and {what}: --in FOLDER (or URI), or --topic NAME")
    (output,) = settings.outputs
    return TopicRecords(settings, output.topic) if isinstance(output, KafkaOutput) else Files(output.uri)


class _Asked:
    """The questions, embedded when the first vector is there that they can be compared with."""

    def __init__(
        self,
        settings: Settings,
        questions: Sequence[str],
        ranges: Path | None,
        prompt_text: str | None,
        *,
        any_fingerprint: bool,
    ) -> None:
        self._settings = settings
        self._questions = questions
        self._prompt_text = prompt_text
        self._any = any_fingerprint
        self._model = Model.open(settings)
        for_questions(settings, prompt_text)  # a prompt that is none is said before anything is read
        self._ranges = None if ranges is None else Ranges.read(ranges.expanduser())
        self._vectors: type_vectors | None = None
        self._fits: dict[Space, bool] = {}

    def compare(self, space: Space, stored: Quantized) -> npt.NDArray[np.float32] | None:
        """See :data:`pipelines.search.ranking.type_compare`."""
        if space not in self._fits:
            self._fits[space] = self._is_ours(space)
        if not self._fits[space]:
            return None
        if self._vectors is None:
            try:
                self._vectors = embed_questions(self._settings, self._questions, self._prompt_text)
            except PoisonError as error:
                raise SettingsError(f"a question cannot be embedded: {error.message}") from None
        if not has_direction(self._vectors, space.dim).all():
            raise EnvironmentFault(f"{self._model.name} gives no finite vector with a direction for a question")
        vectors = restore(stored, space.precision, self._ranges_of(space))
        return cosines(vectors, np.asarray(project(self._vectors, space.dim), np.float32))

    def complaint(self, place: str, count: int, foreign: Mapping[Space, int]) -> str:
        """Why the vectors that do not fit do not."""
        space, found = next(iter(foreign.items()))
        held = f"{place} holds {found:,} of {count:,} vectors" if found < count else f"{place} holds vectors"
        name, dim = self._model.name, self._model.layout.dim
        if space.model and space.model != name:
            return f"{held} of another model ({space}), and the settings name {name}: set model.name to that one"
        if space.dim > dim:
            return f"{held} of {space.dim} dims, and {name} has {dim}: set model.name to the model that made them"
        return (
            f"{held} of another fingerprint ({space}) than these settings make ({self._fingerprint(space)}): give those that "
            "made them (-c pipeline.yaml; model, prompt, source.text, max_tokens and overflow count), or --any-fingerprint"
        )

    def _is_ours(self, space: Space) -> bool:
        if (space.model and space.model != self._model.name) or not 1 <= space.dim <= self._model.layout.dim:
            return False
        return self._any or not space.fingerprint or space.fingerprint == self._fingerprint(space)

    def _fingerprint(self, space: Space) -> str:
        ranges = self._ranges_of(space)
        return self._model.fingerprint(space.dim, space.precision, None if ranges is None else ranges.digest)

    def _ranges_of(self, space: Space) -> Ranges | None:
        """The ranges that a space's vectors were quantised by."""
        if space.precision not in WITH_RANGES:
            return None
        if self._ranges is None:
            path = next((each.ranges for each in self._settings.outputs if each.precision == space.precision), None)
            if path is None:
                raise SettingsError(
                    f"vectors in precision {space.precision} are read with the ranges that they were made with: --ranges FILE, "
                    "or the settings' own (-c pipeline.yaml)"
                )
            self._ranges = Ranges.read(path.expanduser())
        if self._ranges.dim != space.dim:
            raise SettingsError(f"the ranges have {self._ranges.dim} dimensions, and the vectors {space.dim}")
        return self._ranges


def _print(questions: Sequence[str], answers: Sequence[Sequence[Hit]]) -> None:
    for question, hits in zip(questions, answers, strict=True):
        print(f"\n{_one_line(question)}")
        width = min(60, max(len(_one_line(hit.id)) for hit in hits))
        for hit in hits:
            said = "  ".join(_one_line(str(value)) for value in hit.fields.values() if value not in (None, ""))
            print(f"   {hit.score:.3f}  {_one_line(hit.id):<{width}}  {said}".rstrip())


def _print_json(questions: Sequence[str], answers: Sequence[Sequence[Hit]]) -> None:
    for question, hits in zip(questions, answers, strict=True):
        for place, hit in enumerate(hits, 1):
            about = {"question": question, "place": place, "id": hit.id, "score": round(hit.score, 6)}
            print(json.dumps({**about, "fields": dict(hit.fields)}, ensure_ascii=False, default=str))


def _one_line(text: str) -> str:
    """A text as one line of a terminal: no control characters, and not too long."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return line if len(line) <= LINE else f"{line[: LINE - 1]}…"


def _looked(spaces: Mapping[Space, int]) -> str:
    total = sum(spaces.values())
    kinds = " and ".join(dict.fromkeys(f"{space.dim} dims in {space.precision}" for space in spaces))
    return f"by cosine, over each of {total:,} vectors ({kinds}): exact, and for trying; a vector database does it for many"
