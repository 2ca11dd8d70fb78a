"""Contents of packages whose answers do not all count."""

from dataclasses import replace

import numpy as np

from edgekit.package.contents import Contents, Golden


def with_threshold(contents: Contents) -> Contents:
    """Returns contents in which some goldens count and some do not, none of them by a hair."""
    output = contents.output

    def score(golden: Golden) -> float:
        real = golden.output.astype(np.float64)
        if output.scale is not None:
            real = output.scale * (real - (output.zero_point or 0))
        return float(real.max())

    scores = np.sort([score(golden) for golden in contents.goldens])
    widest = int(np.diff(scores).argmax())
    threshold = float(scores[widest : widest + 2].mean())
    goldens = (replace(each, accepted=score(each) > threshold) for each in contents.goldens)
    return replace(contents, score_threshold=threshold, goldens=tuple(goldens))
