"""Whether settings fit the model: what only the model's files can contradict.

Comes in: settings and a layout. Goes out: nothing, or one ``SettingsError`` with a line per mistake. Never here: weights, or
what contradicts itself in the settings alone (``workers.settings`` says that).
"""

from __future__ import annotations

from workers.encoder.layout import Layout, prompt_for
from workers.errors import PoisonError, SettingsError
from workers.settings import Settings, Vectors


def against_model(settings: Settings, layout: Layout) -> None:
    """Check the settings that only the model can contradict.

    Raises:
        SettingsError: a dim, a length or a prompt that the model does not have; one line each.
    """
    name, wanted, budget = settings.model.name, settings.model.max_tokens, settings.pool.max_batch_tokens
    chunk = settings.model.chunk
    longest = chunk.tokens or layout.max_tokens
    mistakes = []
    for number, output in enumerate(settings.outputs):
        mistakes += output_against_model(output, layout, name, f"outputs.{number}.")
    if wanted is not None and wanted > layout.max_tokens:
        mistakes.append(f"model.max_tokens ({wanted}) is larger than the {layout.max_tokens} tokens that {name} takes")
    elif wanted is None and budget != "auto" and longest > budget:
        mistakes.append(
            f"pool.max_batch_tokens ({budget}) is smaller than the longest text of {name} ({longest} tokens): "
            "raise it, or set model.max_tokens"
        )
    if chunk.tokens is not None and chunk.tokens > layout.max_tokens:
        mistakes.append(
            f"model.chunk.tokens ({chunk.tokens}) is larger than the {layout.max_tokens} tokens that {name} takes"
        )
    elif 2 * chunk.overlap > (most := chunk.tokens or wanted or layout.max_tokens):
        mistakes.append(f"model.chunk.overlap ({chunk.overlap}) is more than half of the {most} tokens of a chunk")
    try:
        _require_prompts(settings, layout)
        _require_one_length(settings, layout)
        if settings.queries.enabled:
            _require_one_way(settings, layout)
    except SettingsError as error:
        mistakes.append(str(error))
    if mistakes:
        raise SettingsError("\n".join(mistakes))


def output_against_model(output: Vectors, layout: Layout, name: str, above: str) -> list[str]:
    """What in an output the model called ``name`` contradicts; ``above`` stands before the settings' names."""
    if output.dim is not None and output.dim > layout.dim:
        return [f"{above}dim ({output.dim}) is larger than the {layout.dim} dimensions of {name}"]
    if output.precision in ("binary", "ubinary") and output.dim is None and layout.dim % 8:
        return [
            f"{above}precision {output.precision} packs 8 dimensions into a byte, and {name} has {layout.dim}: set "
            f"{above}dim to a multiple of 8"
        ]
    return []


def _require_prompts(settings: Settings, layout: Layout) -> None:
    """Raise SettingsError for the name of a prompt that the model does not have, as far as it can be known without a record."""
    of_topics = enumerate(settings.source.mappings)
    named = [("model.prompt", settings.model)]
    named += [(f"source.mappings.{n}.prompt", settings.of(n).model) for n, each in of_topics if each.prompt is not None]
    for setting, chosen in named:
        if not chosen.prompt_by_record:
            prompt_for(layout, chosen.prompt, chosen.prompt_text, setting)
            continue
        from workers.codecs import prompt_template  # noqa: PLC0415 - numpy comes along, and config does without

        template = prompt_template(chosen, layout.prompts)
        try:
            if not layout.prompts:
                prompt_for(layout, chosen.prompt, None, setting)  # says so
            if template is not None and template.has_defaults:
                template.render({})
        except PoisonError:
            known = ", ".join(sorted(layout.prompts))
            raise SettingsError(
                f"{setting} is {chosen.prompt!r}, and without the record's fields that names none of the model's prompts; it "
                f"knows {known}"
            ) from None


def _require_one_length(settings: Settings, layout: Layout) -> None:
    """Raise SettingsError for a prompt with fields, or of some topics, where the pooling has to leave the prompt out."""
    if settings.model.prompt_text is not None or settings.model.prompt_by_record:
        from workers.codecs import prompt_template  # noqa: PLC0415 - as above

        if prompt_template(settings.model) is not None and not layout.include_prompt:
            setting = "prompt" if settings.model.prompt_by_record else "prompt_text"
            raise SettingsError(
                f"model.{setting} has fields, and the pooling of {settings.model.name} leaves the prompt out, which must be "
                "of one length for that: write it without fields"
            )
    for number, mapping in enumerate(settings.source.mappings):
        if mapping.own_prompt and not layout.include_prompt:
            setting = "prompt" if mapping.prompt_text is None else "prompt_text"
            raise SettingsError(
                f"source.mappings.{number}.{setting} is another prompt, and the pooling of {settings.model.name} leaves the "
                "prompt out, which must be one for all topics for that: leave it out here"
            )


def _require_one_way(settings: Settings, layout: Layout) -> None:
    """Raise SettingsError where the encoders of a stream cannot embed queries as the model means them to be."""
    name = settings.model.name
    if layout.route and "query" not in layout.route.split("/"):
        raise SettingsError(
            f"queries.enabled: {name} embeds queries by another route than {layout.route}, which the stream's encoders take; "
            "leave it out, and run a pipeline with model.task: query for them"
        )
    streams = prompt_for(layout, settings.model.prompt, settings.model.prompt_text)
    if not layout.include_prompt and layout.prompts.get("query", streams) != streams:
        raise SettingsError(
            f"queries.enabled: the pooling of {name} leaves the prompt out, which must be one for all texts for that, and "
            "queries have one of their own; leave it out"
        )
