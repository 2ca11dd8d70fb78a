"""A page that shows what a data folder was understood to hold: a few pictures of each class.

One file of HTML without a script; pictures stand in it, so it can be moved, sent and kept. How many
there are does not grow with the data.
"""

import base64
import html
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from PIL import Image

from edgekit.data.files import printable
from edgekit.data.names import SPLITS
from edgekit.data.overview import counts_of
from edgekit.data.picture import UnreadableError, decode
from edgekit.data.scan import Scan, Source, content_of
from edgekit.processes import apart

# A picture takes about 3 kB: at most 4 MB in all. Four of each of three splits lie side by side.
_SIDE_PX, _QUALITY = 84, 75
_PICTURES = 1000
_PER_SPLIT, _PER_CLASS = 6, 12
_CLASSES = 200
_CHUNK = 8

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none'; \
form-action 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
  :root {{ --quiet: light-dark(#5a5a5a, #aaa); --line: light-dark(#d8d8d8, #444); }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; \
padding: 0 1rem; }}
  h1 {{ font-size: 1.5rem; margin-bottom: .25rem; overflow-wrap: anywhere; }}
  h2 {{ font-size: 1rem; margin: 0; overflow-wrap: anywhere; }}
  p, li {{ overflow-wrap: anywhere; }}
  ul {{ margin: .25rem 0 1.5rem; padding-left: 1.25rem; color: var(--quiet); }}
  table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 2rem; }}
  th, td {{ padding: .25rem 1.5rem .25rem 0; text-align: right; \
border-bottom: 1px solid var(--line); }}
  th:first-child {{ text-align: left; }}
  section {{ border-top: 1px solid var(--line); padding: .75rem 0; }}
  .splits {{ display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin-top: .5rem; }}
  figure {{ margin: 0; }}
  figcaption {{ color: var(--quiet); font-size: .875rem; font-variant-numeric: tabular-nums; }}
  .pictures {{ display: flex; flex-wrap: wrap; gap: 4px; }}
  img, .unreadable {{ width: {side}px; height: {side}px; object-fit: contain; \
background: light-dark(#f2f2f2, #222); }}
  .unreadable {{ font-size: .75rem; line-height: 1.25; color: var(--quiet); overflow: hidden; \
display: grid; place-content: center; text-align: center; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{summary}</p>
{words}{table}
<main>
{sections}
</main>
{rest}</body>
</html>
"""


def contact_sheet(
    found: Scan, left_out: Iterable[str], progress: Callable[[int, int], None]
) -> str:
    """Returns the page as HTML.

    Of each class and split some pictures are shown, evenly spread over all of its files; of more
    than 200 classes the first 200.

    Args:
        found: The data folder; of it only the pictures shown are decoded.
        left_out: What is said about files that were left out.
        progress: Called with (pictures decoded, pictures in all).
    """
    names = [printable(name) for name in found.class_names]
    counts = counts_of(found)
    splits = list(counts[names[0]])
    shown = _shown(found, len(splits))
    pictures = _pictures([s for group in shown.values() for s in group], progress)
    sections = [
        _section(name, [(s, counts[name][s], shown[label, s]) for s in splits], pictures)
        for label, name in enumerate(names[:_CLASSES])
    ]
    title = f"Pictures of {printable(found.root.resolve().name)}"
    rest = len(names) - len(sections)
    return _PAGE.format(
        title=html.escape(title),
        side=_SIDE_PX,
        summary=f"{len(found.sources):,} pictures of {len(names):,} classes. Is every one where it "
        "belongs? The network learns what stands here.",
        words=_list([*found.words, *left_out]),
        table=_table(counts, splits),
        sections="\n".join(sections),
        rest=f"<p>and {rest:,} more classes</p>\n" if rest else "",
    )


def _shown(found: Scan, splits: int) -> dict[tuple[int, str], list[Source]]:
    """Returns the pictures that are shown of every class and split."""
    every: dict[tuple[int, str], list[Source]] = defaultdict(list)
    for source in found.sources:
        if source.label < _CLASSES:
            every[source.label, source.split or "undivided"].append(source)
    groups = splits * min(len(found.class_names), _CLASSES)
    most = _PER_CLASS if splits == 1 else _PER_SPLIT
    each = max(1, min(most, _PICTURES // groups))
    spread: dict[tuple[int, str], list[Source]] = defaultdict(list)
    for place, sources in every.items():
        taken = min(each, len(sources))
        spread[place] = [sources[number * len(sources) // taken] for number in range(taken)]
    return spread


def _pictures(sources: Sequence[Source], progress: Callable[[int, int], None]) -> dict[str, str]:
    """Returns each picture as an element of HTML, by its path below the data folder."""
    chunks = [sources[start : start + _CHUNK] for start in range(0, len(sources), _CHUNK)]
    made: dict[str, str] = {}
    with apart(_elements, chunks, os.cpu_count() or 1) as results:
        for chunk, elements in zip(chunks, results, strict=True):
            made.update(zip((source.relative for source in chunk), elements, strict=True))
            progress(len(made), len(sources))
    return made


def _elements(sources: Sequence[Source]) -> list[str]:
    return [_element(source) for source in sources]


def _element(source: Source) -> str:
    name = html.escape(printable(source.relative))
    small = _thumbnail(source)
    if isinstance(small, str):
        reason = html.escape(printable(small))
        return f'<div class="unreadable" title="{name}: {reason}">cannot be read</div>'
    data = base64.b64encode(small).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="" title="{name}" loading="lazy">'


def _thumbnail(source: Source) -> bytes | str:
    """Returns a small JPEG of a picture, or the reason why there is none."""
    content = content_of(source.path)
    if isinstance(content, str):
        return content
    try:
        picture = decode(content, 2 * _SIDE_PX)
    except UnreadableError as reason:
        return str(reason)
    picture.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _section(
    name: str, splits: Sequence[tuple[str, int, Sequence[Source]]], pictures: dict[str, str]
) -> str:
    figures = "".join(_figure(*split, pictures) for split in splits)
    return f'<section><h2>{html.escape(name)}</h2>\n<div class="splits">{figures}</div></section>'


def _figure(split: str, count: int, shown: Sequence[Source], pictures: dict[str, str]) -> str:
    elements = "".join(pictures[source.relative] for source in shown)
    said = f"{count:,} pictures" if split == "undivided" else f"{split} {count:,}"
    return (
        f"<figure><figcaption>{said}</figcaption>\n"
        f'<div class="pictures">{elements}</div></figure>\n'
    )


def _list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>\n" for line in lines)
    return f"<ul>\n{items}</ul>\n" if items else ""


def _table(counts: dict[str, dict[str, int]], splits: Sequence[str]) -> str:
    """Returns a row for every split: its pictures, and the fewest and the most of one class."""
    return (
        "<table><thead><tr><th>split</th><th>pictures</th><th>fewest of a class</th>"
        f"<th>most of a class</th></tr></thead>\n<tbody>{''.join(_lines(counts, splits))}"
        "</tbody></table>\n"
    )


def _lines(counts: dict[str, dict[str, int]], splits: Sequence[str]) -> Iterator[str]:
    for split in sorted(splits, key=[*SPLITS, "undivided"].index):
        sizes = [each[split] for each in counts.values()]
        name = "to be divided" if split == "undivided" else split
        cells = "".join(f"<td>{size:,}</td>" for size in (sum(sizes), min(sizes), max(sizes)))
        yield f"<tr><th>{name}</th>{cells}</tr>\n"
