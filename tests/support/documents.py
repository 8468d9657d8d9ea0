"""README.md as the tests see it: its blocks, its map of the code, and the tables it has to show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from musicgen_bento import errors
from musicgen_bento.config import Settings
from musicgen_bento.model_catalog import CATALOG, ModelCard

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

_BLOCK = re.compile(r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block. `why_not` is what the comment above it says where it is not to be run."""

    heading: str
    language: str
    code: str
    why_not: str | None


def blocks(document: Path = README) -> list[Block]:
    text = document.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        headings = re.findall(r"^#+ (.+)$", re.sub(_BLOCK, "", text[: match.start()]), re.M)
        found.append(Block(headings[-1], match["language"], match["code"], match["why"]))
    return found


def code_map() -> dict[str, str]:
    """The map of the code, in its order: path → what it says about it. Folders end in a slash."""
    [block] = [block for block in blocks() if block.heading == "Map of the code"]
    entries, folders = {}, [(-1, "")]
    for line in block.code.splitlines():
        name, _, about = line.strip().partition(" ")
        indent = len(line) - len(line.lstrip())
        while folders[-1][0] >= indent:
            folders.pop()
        path = folders[-1][1] + name
        entries[path] = about.strip()
        if name.endswith("/"):
            folders.append((indent, path))
    return entries


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_table() -> str:
    def shown(value: object) -> str:
        match value:
            case None:
                return "by device"
            case bool():
                return f"`{int(value)}`"
            case tuple():
                return f"`{','.join(value)}`"
            case float():
                return f"`{value:g}`"
            case _:
                return f"`{value}`"

    return _table(
        ("variable", "default", "what it is"),
        [
            (f"`MUSICGEN_{name.upper()}`", shown(field.default), field.description or "")
            for name, field in Settings.model_fields.items()
        ],
    )


def error_table() -> str:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MusicGenError)
    ]
    kinds.sort(key=lambda kind: kind.status)
    about = {errors.MusicGenError: "Something that nobody foresaw."}
    return _table(
        ("status", "code", "what it means"),
        [
            (str(kind.status), f"`{kind.code}`", about.get(kind) or (kind.__doc__ or "").splitlines()[0])
            for kind in kinds
        ],
    )


def catalogue_table() -> str:
    def size(card: ModelCard) -> str:
        return f"{card.download_bytes / 1e9:.1f} GB" if card.download_bytes else "built in"

    def parameters(card: ModelCard) -> str:
        return f"{card.parameters / 1e9:.1f} B" if card.parameters >= 1e9 else f"{card.parameters / 1e6:.3g} M"

    return _table(
        ("model", "channels", "parameters", "download", "also written"),
        [
            (
                f"`{card.id}`",
                "stereo" if card.channels == 2 else "mono",
                parameters(card),
                size(card),
                ", ".join(f"`{alias}`" for alias in card.aliases if alias.startswith("facebook/")) or "",
            )
            for card in CATALOG
        ],
    )


if __name__ == "__main__":
    print(settings_table(), error_table(), catalogue_table(), sep="\n\n")
