"""Code and documents use the terms of the glossary; retired names and phrases do not return."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import documents

ROOT = documents.ROOT
ENDINGS = (".py", ".c", ".h", ".js", ".html", ".css", ".md", ".yaml", ".toml", ".in")
FOLDERS = ("musicgen_bento", "tests", "bench", "training", "deploy", "docs", "image")
FILES = sorted(
    path
    for path in (*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*")))
    if path.is_file() and path.suffix in ENDINGS and path != Path(__file__)
)

# Retired: the term that replaces it.
RETIRED = {
    r"deaf|unheard|hearing rows?": "unconditional row, conditional row",
    r"seats?|seated": "slot, batch index",
    r"in any company|in company": "batch-invariant",
    r"whoever|nobody|somebody": "a noun: client, request, thread",
    r"anew": "again",
    r"spoken for": "reserved",
    r"_doom|MeasuredPool|EnginePool|ModelEngine": "_shutdown_error, RequestMetrics, ModelPool, Engine",
    r"MUSICGEN_UNREAD_MEGABYTES|unread_full": "MUSICGEN_RESPONSE_BUFFER_MEGABYTES, response_buffer_full",
    r"musicgen_times_real_time": "musicgen_realtime_factor",
    r"broken_checkpoint|jobs_full|too_slow|cut_short|bad_answer": "the codes in docs/http.md and docs/sdk.md",
}


def glossary_terms() -> list[str]:
    text = documents.ARCHITECTURE.read_text().partition("## Glossary")[2].partition("\n## ")[0]
    return [row for row in re.findall(r"^\| ([^|]+?) \|", text, re.M) if row not in ("term", "---")]


def test_the_glossary_has_about_forty_terms_each_once() -> None:
    terms = glossary_terms()
    assert 35 <= len(terms) <= 60
    assert len(set(terms)) == len(terms)


@pytest.mark.parametrize("pattern", RETIRED)
def test_retired_words_do_not_return(pattern: str) -> None:
    word = re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE)
    uses = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line)
    ]
    assert not uses, f"write instead: {RETIRED[pattern]}\n" + "\n".join(uses)
