"""What a data folder was understood to hold, for a terminal; no list grows with the data."""

from collections import Counter

from rich.markup import escape
from rich.table import Table

from edgekit.data.decode import Look, too_many_left_out
from edgekit.data.files import printable
from edgekit.data.names import SPLITS
from edgekit.data.scan import Scan

_SHOWN = 10


def counts_of(found: Scan) -> dict[str, dict[str, int]]:
    """Returns the number of pictures of every class by split, "undivided" where edgekit splits."""
    counts = Counter((source.label, source.split) for source in found.sources)
    return {
        printable(name): {
            split or "undivided": counts[label, split]
            for split in (*SPLITS, None)
            if any(known == split for _, known in counts)
        }
        for label, name in enumerate(found.class_names)
    }


def refused(found: Scan, look: Look, max_bad_fraction: float) -> str:
    """Returns why a run would refuse a folder for what it has to leave out; "" if it would not.

    Args:
        found: The folder.
        look: What some of its pictures are like.
        max_bad_fraction: Largest share of pictures that may be unusable.
    """
    usable = look.tried - len(look.skipped)
    received = too_many_left_out(len(found.sources), found.skipped, max_bad_fraction)
    if not received:
        received = too_many_left_out(usable, look.skipped, max_bad_fraction)
        received = received and f"of those looked into, {received}"
    limit = f"at most {max_bad_fraction:.1%} may be (data.max_bad_fraction)"
    return received and f"{received}, and {limit}"


def pictures_table(found: Scan) -> Table:
    """Returns a table of the first classes, how many more there are, and the sums."""
    counts = counts_of(found)
    splits = list(next(iter(counts.values())))
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("class")
    for split in splits:
        grid.add_column("pictures" if split == "undivided" else split, justify="right")
    for name in list(counts)[:_SHOWN]:
        grid.add_row(escape(name), *(f"{counts[name][split]:,}" for split in splits))
    if len(counts) > _SHOWN:
        grid.add_row(f"and {len(counts) - _SHOWN} more classes")
    sums = (sum(each[split] for each in counts.values()) for split in splits)
    grid.add_row(f"all {len(counts)} classes", *(f"{count:,}" for count in sums), style="bold")
    return grid
