"""METEOR and CIDEr of captions, through pycocoevalcap, as COCO's caption evaluation and the GCG benchmark compute them.

Both see text that the Penn Treebank tokenizer has split, lower-cased and freed of punctuation; it and METEOR 1.5 are
Java programs. Without Java neither number exists: another tokenizer would give another number under the same name.

- *METEOR*: of the whole set, from summed statistics; not the mean of the captions' scores.
- *CIDEr*: mean over captions. How much a word weighs depends on all references of the set, so that a number over a part
  of a set is not comparable, and a single caption always scores 0.

All results are what the programs say: METEOR in 0..1, CIDEr in 0..10; the benchmark prints both times 100.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flmm_plugin.errors import ToolNotFound


class Caption(NamedTuple):
    """A caption to judge, and the one it is compared with."""

    candidate: str
    reference: str


def need_java() -> None:
    """Raise `ToolNotFound` where there is no Java."""
    if shutil.which("java") is None:
        raise ToolNotFound(
            "METEOR and CIDEr need Java, which is not on the PATH: install a JRE (Debian: apt-get install "
            "default-jre-headless), then get both numbers from the kept predictions with `flmm score SAMPLES.jsonl`"
        )


def tokenize(captions: Sequence[Caption]) -> list[Caption]:
    """Both texts of every caption as words with single spaces, by the Penn Treebank tokenizer.

    Raises:
        ToolNotFound: There is no Java, or its tokenizer did not run.
    """
    # One line per text: whatever else ends a line for Java (U+2028, \\r) would shift all that follow.
    texts = [" ".join(text.split()) for caption in captions for text in caption]
    asked = {index: [{"caption": text}] for index, text in enumerate(texts) if text}
    words = _tokenized(asked) if asked else {}
    done = [words[index][0] if index in words else "" for index in range(len(texts))]
    return [Caption(*pair) for pair in zip(done[::2], done[1::2], strict=True)]


def _tokenized(asked: dict[int, list[dict[str, str]]]) -> dict[int, list[str]]:
    need_java()
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    try:
        words: dict[int, list[str]] = PTBTokenizer().tokenize(asked)
    except OSError as exc:
        raise ToolNotFound(
            f"pycocoevalcap's tokenizer, which writes a file into its own folder, did not run ({exc}); install "
            "pycocoevalcap where this user may write"
        ) from exc
    if words.keys() != asked.keys():
        raise ToolNotFound(
            f"pycocoevalcap's tokenizer returned {len(words)} of {len(asked)} texts; is its Java (java -version) whole?"
        )
    return words


def cider(tokenized: Sequence[Caption]) -> list[float]:
    """CIDEr of each tokenized caption; that of the set is the mean."""
    if not tokenized:
        return []
    from pycocoevalcap.cider.cider import Cider

    references = {index: [caption.reference] for index, caption in enumerate(tokenized)}
    candidates = {index: [caption.candidate] for index, caption in enumerate(tokenized)}
    if not any(caption.reference for caption in tokenized):
        return [0.0] * len(tokenized)
    _, scores = Cider().compute_score(references, candidates)
    return [float(score) for score in np.asarray(scores)]


class Meteor:
    """METEOR 1.5 as a running program; a context manager. Starting it takes seconds and up to 2 GB of memory.

    Example::

        with Meteor() as meteor:
            statistics = [meteor.statistics(caption) for caption in tokenized]
            meteor.score(statistics)

    Raises:
        ToolNotFound: There is no Java, or the program ended.
    """

    def __init__(self) -> None:
        need_java()
        from pycocoevalcap.meteor import meteor as peer

        folder = os.path.dirname(os.path.abspath(peer.__file__))
        command = ["java", "-Xmx2G", "-jar", peer.METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
        # Not the package's own wrapper: that one keeps stderr in a pipe nobody reads, and waits for ever if Java dies.
        self._program: Any = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8",
        )  # fmt: skip

    def __enter__(self) -> Meteor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._program.stdin.close()
        self._program.kill()
        self._program.wait()
        self._program.stdout.close()

    def statistics(self, caption: Caption) -> str:
        """Return the counts of one tokenized caption from which METEOR follows, as the program writes them."""
        candidate, reference = (text.replace("|||", "").replace("  ", " ") for text in caption)
        return self._ask(f"SCORE ||| {reference} ||| {candidate}", 1)[0]

    def score(self, statistics: Sequence[str]) -> float:
        """METEOR of a set of captions, 0..1; 0 for none."""
        if not statistics:
            return 0.0
        # The program answers with the score of every caption and then that of the set.
        return float(self._ask(" ||| ".join(["EVAL", *statistics]), len(statistics) + 1)[-1])

    def _ask(self, line: str, answers: int) -> list[str]:
        try:
            self._program.stdin.write(line + "\n")
            self._program.stdin.flush()
            said = [self._program.stdout.readline().strip() for _ in range(answers)]
        except OSError as exc:
            raise ToolNotFound(f"METEOR's program ended ({exc}); it needs 2 GB of memory and a working Java") from exc
        if not all(said):
            raise ToolNotFound("METEOR's program ended early; it needs 2 GB of memory and a working Java")
        return said
