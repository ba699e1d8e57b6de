"""What a command line says: which command, its options, its free words, and the settings among its flags.

Comes in: arguments. Goes out: ``Arguments``, help, or a ``SettingsError``. Never here: the values of settings, which
``pipelines.configure`` reads, or the work of a command.
"""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, get_args

from pipelines.of_topic import OfTopic
from workers.errors import SettingsError

PROGRAM = "stream-embedder"

SETTINGS_HELP = """
Every setting is also a flag and an environment variable; later ones win: file, environment, flags.
  --pool.max 4   --pool.max=4   --outputs.0.dim 256   --source.topics '[a, b]'
  STREAM_EMBEDDER_POOL__MAX=4
stream-embedder config lists them all, and where each came from.
"""


class Arguments(NamedTuple):
    """A command line, taken apart; ``flags`` are the settings: dotted key and raw text."""

    options: argparse.Namespace
    words: Sequence[str]
    flags: Sequence[tuple[str, str]]


class Command(NamedTuple):
    """How a command is explained; ``words`` names its free arguments, empty when it takes none."""

    about: str
    example: str
    words: str = ""


COMMANDS = {
    "run": Command(
        "Read texts from Kafka, embed them, write the vectors back; until SIGTERM, which drains.",
        "stream-embedder run -c pipeline.yaml --pool.max 4",
    ),
    "batch": Command(
        "Embed files, of Parquet, JSON lines, CSV or text, or what topics hold, into Parquet files, and end. Run again after "
        "whatever ended it, it goes on where it was.",
        "stream-embedder batch -c batch.yaml --batch.inputs 'documents/*.parquet'",
    ),
    "plan": Command(
        "Say what a run or a batch would be, before anything starts: records, tokens, what would be refused, bytes out, hours. A "
        "sample of the input goes through the code of the real thing; the totals come with their error.",
        "stream-embedder plan -c batch.yaml --measure --price-per-hour 2.5",
    ),
    "encode": Command(
        "Print the vectors of a few texts, as one JSON line each. Texts are arguments, or JSON lines on standard input with the "
        'fields of source.text ("text" by default), and "id" if they like.',
        "stream-embedder encode --dim 256 'first text' 'second text'",
        "TEXT",
    ),
    "calibrate": Command(
        "Make the ranges file that precisions int8_ranges and uint8_ranges need, from a sample of texts: arguments, or JSON "
        "lines with the fields of source.text, such as the topic's own values, on standard input. Take 1,000 or more.",
        "stream-embedder calibrate -c pipeline.yaml --dim 256 --out ranges.npz < sample.jsonl",
        "TEXT",
    ),
    "report": Command(
        "Say what each dim and precision of the vectors keeps, on a sample of your own texts: what a search finds, bytes, the "
        "cheapest that is enough, and whether the model may be cut (MRL). A FILE is JSON lines with the fields of source.text, or "
        "Parquet with such columns; without one, JSON lines on standard input. Writes report.json and report.html.",
        "stream-embedder report -c pipeline.yaml --min-recall 0.98 documents.parquet",
        "FILE",
    ),
    "search": Command(
        "Print which vectors of an output are nearest to a question. Each is looked at, which is exact, and for trying. Without "
        "--in and --topic: those of the settings' only output.",
        "stream-embedder search --in vectors/ 'how do I reset it?'",
        "QUESTION",
    ),
    "cutover": Command(
        "Say whether the outputs of these settings may take the place of an old one: every document that has a vector there has "
        "one here, of these settings and of no older record, and there are no others. Ends with 0 when it is so, else with 1.",
        "stream-embedder cutover -c new.yaml --old-topic vectors --until 5m",
    ),
    "check": Command(
        "Look at the broker, the topics, the model and the sizes, and say what would fail before it does.",
        "stream-embedder check -c pipeline.yaml",
    ),
    "status": Command(
        "Say how the pipeline is: its group, how far behind each partition is and for how long, replicas and why there are so "
        "many (with ray.address), whose vectors the outputs hold. Ends with 0 when all is well, with 1 when it is stalled or "
        "out of reach, and says what to do.",
        "stream-embedder status -c pipeline.yaml --ray.address auto --watch",
    ),
    "topics create": Command(
        "Create the topics that the settings name and that are not there, with the sizes and the clean-up that the pipeline "
        "needs. Those that are there stay as they are; check says whether they suit.",
        "stream-embedder topics create -c pipeline.yaml --partitions 12 --replication 3",
    ),
    "offsets show": Command(
        "Say how far the group is in each partition of the source, and how far behind. A PLACE is TOPIC or TOPIC/PARTITION.",
        "stream-embedder offsets show -c pipeline.yaml",
        "PLACE",
    ),
    "offsets reset": Command(
        "Have a pipeline that is not running go on from elsewhere: earliest, latest, an offset, the first record since a time, "
        "or where its batch over the topics ends. All partitions, or the PLACEs that are named, TOPIC or TOPIC/PARTITION.",
        "stream-embedder offsets reset -c pipeline.yaml --to 2h --dry-run",
        "PLACE",
    ),
    "dead-letters list": Command(
        "Say how many dead letters there are, by stage and class, and where the latest lie that wait. Neither values nor, "
        "without --keys, keys are printed.",
        "stream-embedder dead-letters list -c pipeline.yaml --stage text --since 2h",
    ),
    "dead-letters show": Command(
        "Say all that is known of a dead letter. A PLACE is PARTITION/OFFSET of the dead-letter topic, as list prints it, or "
        "TOPIC/PARTITION/OFFSET of the source. The key and the value are printed with --payload.",
        "stream-embedder dead-letters show -c pipeline.yaml 0/12 --payload",
        "PLACE",
    ),
    "dead-letters replay": Command(
        "Send dead letters back to their source topics, byte for byte, each once. All that wait, or those that the options "
        "and places name; what is left out waits on, for another replay.",
        "stream-embedder dead-letters replay -c pipeline.yaml --class missing_field --dry-run",
        "PLACE",
    ),
    "config": Command(
        "Print the settings in force and where each came from, with secrets hidden.",
        "stream-embedder config -c pipeline.yaml --pool.max 4",
    ),
    "demo": Command(
        "Run the whole pipeline on this machine, on real text, then search what it embedded. "
        "KAFKA_BOOTSTRAP_SERVERS names a broker to use instead of a local one.",
        "stream-embedder demo --rows 500 'how do I reset it?'",
        "QUESTION",
    ),
}

# Commands without settings, which read their line themselves.
STANDALONE = {
    "bench": "Measure this encoder beside its peers, on this machine.",
    "simulate": "Run the scaling policy against load curves, beside other scalers.",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} ({self.prog} --help says more)")


def overview(group: str = "") -> str:
    """The help of the whole program, or of the commands that begin with ``group``."""
    about = {name: command.about for name, command in COMMANDS.items()} | STANDALONE
    about = {name: text for name, text in about.items() if name.startswith(group)}
    width = max(map(len, about))
    listed = "\n".join(f"  {name:<{width}} {text.partition('. ')[0].rstrip('.')}." for name, text in about.items())
    return (
        f"usage: {PROGRAM} COMMAND [-c FILE] [--section.field VALUE ...]\n\n"
        "Keeps a Kafka topic of embeddings in step with a stream of text.\n\n"
        f"commands:\n{listed}\n\n{PROGRAM} COMMAND --help says more about one.\n{SETTINGS_HELP}"
    )


def _parser(name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    words = f" [{command.words} ...]" if command.words else ""
    parser = _Parser(
        prog=f"{PROGRAM} {name}",
        usage=f"{PROGRAM} {name} [-c FILE] [--section.field VALUE ...] [options]{words}",
        description=textwrap.fill(command.about, 96),
        epilog=f"example:\n  {command.example}\n{SETTINGS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="settings, in YAML")
    if name == "batch":
        parser.add_argument("--json", action="store_true", help="the summary as a JSON object")
    if name == "encode":
        parser.add_argument("--dim", type=_positive, metavar="N", help="dimensions of the vectors")
        from workers.settings import type_precision  # noqa: PLC0415 - not for the help of the others

        parser.add_argument("--precision", choices=get_args(type_precision), default="float32")
        parser.add_argument("--ranges", type=Path, metavar="FILE", help="for int8_ranges and uint8_ranges")
    if name in ("encode", "calibrate"):
        OfTopic.add_options(parser)
    if name == "calibrate":
        parser.add_argument("--dim", type=_positive, metavar="N", help="dimensions of the output; default: the model's")
        parser.add_argument("--out", type=Path, metavar="FILE", required=True, help="the ranges file, an .npz")
    if name == "report":
        from pipelines.report.options import add_options  # noqa: PLC0415 - as above

        add_options(parser, _positive)
    if name == "plan":
        from pipelines.plan.options import add_options  # noqa: PLC0415

        add_options(parser, _positive)
    if name == "search":
        from pipelines.search.options import add_options  # noqa: PLC0415

        add_options(parser, _positive)
    if name == "cutover":
        from pipelines.cutover.options import add_options as add_cutover  # noqa: PLC0415

        add_cutover(parser)
    if name == "status":
        from pipelines.status.options import add_status  # noqa: PLC0415

        add_status(parser)
    if name == "topics create":
        parser.add_argument("--partitions", type=_positive, metavar="N", help="of each topic; default: the source's")
        parser.add_argument("--replication", type=_positive, metavar="N", help="copies; default: the broker's")
        parser.add_argument("--keyless", action="store_true", help="no compaction, for records without keys")
        parser.add_argument("--dry-run", action="store_true", help="say what would be created, and create nothing")
    if name == "offsets show":
        parser.add_argument("--json", action="store_true", help="a JSON object per partition, and no table")
    if name == "offsets reset":
        parser.add_argument("--to", required=True, metavar="WHERE", help="earliest, latest, batch, OFFSET, or a time")
        parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    if name in ("dead-letters list", "dead-letters replay"):
        _add_filter(parser)
    if name == "dead-letters list":
        parser.add_argument("--last", type=_count, metavar="N", help="how many to print; default: 20, with --json all")
        parser.add_argument("--replayed", action="store_true", help="those too that were replayed")
        parser.add_argument("--keys", action="store_true", help="with the records' keys")
        parser.add_argument("--json", action="store_true", help="a JSON object per dead letter, and no table")
    if name == "dead-letters show":
        parser.add_argument("--payload", action="store_true", help="print the key and the value too")
        parser.add_argument("--out", type=Path, metavar="FILE", help="write the value to a file, byte for byte")
    if name == "dead-letters replay":
        parser.add_argument("--to", metavar="TOPIC", help="send them there instead; the partition goes by the key")
        parser.add_argument("--limit", type=_positive, metavar="N", help="send so many at most")
        parser.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    if name == "demo":
        parser.add_argument("--rows", type=_positive, metavar="N", help="how many texts to embed")
        parser.add_argument("--query", action="append", default=[], metavar="TEXT", help="a question of your own")
    return parser


def _add_filter(parser: argparse.ArgumentParser) -> None:
    stages = ("decode", "text", "tokenize", "encode", "output")
    parser.add_argument("--stage", action="append", default=[], choices=stages, help="of this stage; may be repeated")
    parser.add_argument("--class", action="append", default=[], metavar="CLASS", help="of this class; may be repeated")
    parser.add_argument(
        "--topic", action="append", default=[], metavar="TOPIC", help="from this source topic; likewise"
    )
    parser.add_argument(
        "--since", metavar="TIME", help="of records since then: 2026-05-01T00:00:00Z, or 90m, 2h, 7d ago"
    )


def _positive(text: str) -> int:
    return _count(text, 1)


def _count(text: str, least: int = 0) -> int:
    number = int(text) if text.isdecimal() else -1
    if number < least:
        raise argparse.ArgumentTypeError(f"a whole number from {least} up is needed, not {text!r}")
    return number


def _take_settings(arguments: Sequence[str], sections: Collection[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split off ``--section.field value``, ``--section.field=value`` and ``--section value``; the rest is the command's."""
    flags: list[tuple[str, str]] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        match = re.fullmatch(r"--([\w-]+(?:\.[\w-]+)*)(?:=(.*))?", argument, re.DOTALL)
        if match is None or not ("." in match[1] or match[1] in sections):
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(waiting, None)
        if value is None or (match[2] is None and value.startswith("--")):
            raise SettingsError(f"--{match[1]} needs a value: --{match[1]} VALUE, or --{match[1]}=VALUE")
        flags.append((match[1].replace("-", "_"), value))
    return flags, rest


def helped(name: str, arguments: Sequence[str]) -> bool:
    """Whether the arguments ask for the command's help, which is then printed."""
    wanted = bool({"-h", "--help"}.intersection(arguments[: _end(arguments)]))
    if wanted:
        _parser(name).print_help()
    return wanted


def parse(name: str, arguments: Sequence[str], sections: Collection[str]) -> Arguments:
    """Take a command's arguments apart, ``sections`` being the names that a setting's flag may begin with.

    Raises:
        SettingsError: a flag that does not exist or lacks its value, or a word too many.
    """
    parser, cut = _parser(name), _end(arguments)
    flags, rest = _take_settings(arguments[:cut], sections)
    options, words = parser.parse_known_args(rest)
    for word in words:
        if word.startswith("-") and word != "-":
            flag = word.split("=")[0]
            near = difflib.get_close_matches(flag, [f"--{known}" for known in (*vars(options), *sections)], n=1)
            hint = f"did you mean {near[0]}?" if near else f"{PROGRAM} {name} --help lists them"
            raise SettingsError(f"unknown flag {flag}: {hint}")
    words += arguments[cut + 1 :]
    if words and not COMMANDS[name].words:
        raise SettingsError(f"{name} takes no argument such as {words[0]!r}")
    return Arguments(options, words, flags)


def _end(arguments: Sequence[str]) -> int:
    """Where the flags end: at ``--``."""
    return arguments.index("--") if "--" in arguments else len(arguments)
