"""Says what is on pictures: python3 classify.py picture.jpg ..."""

from __future__ import annotations

import argparse
import sys

from classifier import Classifier, PackageError, PictureError


def main() -> int:
    """Prints the likeliest classes of each picture; returns 1 if one was not usable."""
    parser = argparse.ArgumentParser(description="Says what is on pictures.")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="JPEG, PNG, BMP or WebP")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes to show (5)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    asked = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # labels and paths can hold what a terminal cannot
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        classifier = Classifier(asked.threads)
    except PackageError as error:
        print(error, file=sys.stderr)
        return 1
    failed = False
    for picture in asked.pictures:
        try:
            raw = classifier.run(classifier.preprocess(picture))
        except PictureError as error:
            print(f"{picture}: {error}", file=sys.stderr)
            failed = True
            continue
        print(picture if classifier.accepts(raw) else f"{picture}: of no class; likest")
        for label, probability in classifier.likeliest(raw, asked.top):
            print(f"  {100 * probability:5.1f} %  {label}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
