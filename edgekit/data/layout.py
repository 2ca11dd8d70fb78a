"""How a folder of pictures is laid out: which folders are splits, which are classes."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.data.files import FOLDERS_AROUND, LAYOUT, Tree, printable
from edgekit.data.names import SPLITS, is_store, listed, made_from_train, plain, split_names
from edgekit.errors import DataError
from edgekit.records import SkippedFile, SplitName

_UNLABELLED = "folder of pictures without class folders, so without labels"


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose pictures, however deep, are of one class, and the split it belongs to."""

    split: SplitName | None
    class_name: str
    path: Path


@dataclass(frozen=True)
class Layout:
    """What the folders below a data folder mean.

    Args:
        class_names: In label order.
        folders: Every class folder, split by split.
        words: What is not plain from the names, in sentences.
        skipped: What lies where no class or no split is.
    """

    class_names: tuple[str, ...]
    folders: tuple[ClassFolder, ...]
    words: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]


def find_layout(tree: Tree) -> Layout | None:
    """Returns what the folders mean; None where they do not tell the classes of the pictures.

    Args:
        tree: The data folder.

    Raises:
        DataError: If splits lack training pictures or a class, a folder beside splits may be one of
            them or not, or one is a link that is not followed.
    """
    here, words = tree.root, list[str]()
    for _ in range(FOLDERS_AROUND):
        inner = tree.holding(here)
        found = _splits(tree, inner)
        if found is not None:
            return _by_split(tree, here, found, inner, words)
        if _are_classes_of_splits(tree, inner):
            return _by_class(tree, here, inner, words)
        if len(inner) != 1 or tree.own_pictures(here) or not tree.holding(inner[0]):
            break
        tree.refuse_link(inner[0])
        here = inner[0]
        words = [f"everything lies in the folder {tree.shown(here)}"]
    inner = tree.folders(here)
    if len(tree.holding(here)) < 2 or _are_only_called_splits(tree.holding(here)):
        return None
    for folder in inner:
        tree.refuse_link(folder)
    folders = tuple(ClassFolder(None, folder.name, folder) for folder in inner)
    words += _same_inside(tree, tree.holding(here))
    return _layout(folders, words, _loose(tree, here))


def _layout(
    folders: Sequence[ClassFolder],
    words: Sequence[str],
    skipped: Iterable[SkippedFile],
) -> Layout:
    names = tuple(sorted({folder.class_name for folder in folders}))
    return Layout(names, tuple(folders), tuple(words), tuple(skipped))


def _loose(tree: Tree, folder: Path) -> list[SkippedFile]:
    reason = "picture beside the class folders, so of no class"
    return [tree.skipped(path, reason, "ignored") for path in tree.own_pictures(folder)]


def _splits(tree: Tree, folders: Sequence[Path]) -> dict[Path, SplitName] | None:
    """Returns the folders that are splits, or None where the names alone do not make them so.

    A class may be called "test" or "train". What tells is what lies inside: splits hold the same
    class folders, so at least two of them must, or one called train that stands alone.
    """
    named = split_names(folder.name for folder in folders)
    found = {folder: named[folder.name] for folder in folders if folder.name in named}
    inside = {folder: _class_names(tree, folder) for folder in found}
    labelled = [folder for folder in found if inside[folder]]
    if len({found[folder] for folder in labelled}) > 1:
        return found if set.intersection(*(inside[folder] for folder in labelled)) else None
    alone = [folder for folder in labelled if found[folder] == "train"]
    others = [folder for folder in folders if folder not in found]
    return found if alone and len(inside[alone[0]]) > 1 and not others else None


def _are_only_called_splits(folders: Sequence[Path]) -> bool:
    """Returns whether folders that hold no classes in common are all called as splits are."""
    named = split_names(folder.name for folder in folders)
    return len(set(named.values())) > 1 and len(named) == len(folders)


def _class_names(tree: Tree, folder: Path) -> set[str]:
    """Returns the names of the class folders in a folder of a split, as they are compared."""
    return {plain(inner.name) for inner in tree.holding(_inside(tree, folder))}


def _inside(tree: Tree, folder: Path) -> Path:
    """Returns the folder that holds a split's class folders: itself, or one in it.

    As in `seg_train/seg_train/<class>` and `train/images/<class>`.
    """
    for _ in range(FOLDERS_AROUND):
        inner = tree.holding(folder)
        if len(inner) != 1 or tree.own_pictures(folder) or not tree.holding(inner[0]):
            break
        if plain(inner[0].name) != plain(folder.name) and not is_store(inner[0].name):
            break
        folder = inner[0]
    return folder


def _by_split(
    tree: Tree,
    here: Path,
    found: dict[Path, SplitName],
    folders: Sequence[Path],
    words: list[str],
) -> Layout:
    skipped, parts = [], defaultdict[SplitName, list[Path]](list)
    for folder, split in found.items():
        tree.refuse_link(folder)
        if _class_names(tree, folder):
            parts[split].append(_inside(tree, folder))
        else:
            skipped.append(tree.skipped(folder, _UNLABELLED, "ignored"))
            words.append(f"{tree.shown(folder)} holds no class folders, and is left out")
    if "train" not in parts:
        raise DataError(
            f"{printable(str(here))} has {listed(tree.shown(folder) for folder in found)}, and no "
            "training pictures",
            "a folder of them, such as train",
            "add it, or move the class folders out of their splits, and edgekit splits them",
        )
    _refuse_unknown(tree, here, found, folders)
    folders_of = _class_folders(tree, parts)
    names = {plain(folder.class_name) for folder in folders_of}
    for split, places in parts.items():
        own = {plain(f.class_name) for f in folders_of if f.split == split}
        absent = sorted(f.class_name for f in folders_of if plain(f.class_name) in names - own)
        if absent:
            raise DataError(
                f"{printable(str(places[0]))} has no folder for "
                f"{listed(map(printable, dict.fromkeys(absent)))}",
                "every class in every split",
                "add pictures of these classes, or remove the class everywhere",
            )
    words += _told(tree, found, parts)
    skipped += [
        item for places in parts.values() for place in places for item in _loose(tree, place)
    ]
    beside = "beside the folders of the splits, so in no split"
    skipped += [
        tree.skipped(path, f"folder {beside}", "ignored") for path in folders if path not in found
    ]
    skipped += [
        tree.skipped(path, f"picture {beside}", "ignored") for path in tree.own_pictures(here)
    ]
    return _layout(folders_of, words, skipped)


def _class_folders(tree: Tree, parts: dict[SplitName, list[Path]]) -> list[ClassFolder]:
    """Returns the class folders of every split; "Cat" in one split is "cat" in another."""
    spelling: dict[str, str] = {}
    found: list[ClassFolder] = []
    for split in sorted(parts, key=SPLITS.index):
        folders = [folder for place in parts[split] for folder in tree.folders(place)]
        # Two names in one split that differ by no more are refused as everywhere.
        names = Counter(plain(name) for name in {folder.name for folder in folders})
        for folder in folders:
            tree.refuse_link(folder)
            key = plain(folder.name)
            name = spelling.setdefault(key, folder.name) if names[key] == 1 else folder.name
            found.append(ClassFolder(split, name, folder))
    return found


def _refuse_unknown(
    tree: Tree, here: Path, found: dict[Path, SplitName], folders: Sequence[Path]
) -> None:
    """Asks about a folder beside the splits that is laid out as they are.

    Raises:
        DataError: If there is one.
    """
    classes = set.union(*(_class_names(tree, folder) for folder in found))
    for folder in folders:
        if folder in found or not _class_names(tree, folder) & classes:
            continue
        shown = tree.shown(folder)
        raise DataError(
            f"{shown} stands in {printable(str(here))} beside "
            f"{listed(tree.shown(split) for split in found)}, with folders of the same classes: is "
            "it a split, and which?",
            "folders called as splits are, such as train, validation and test",
            f"rename it, or leave it out with data.ignore = [{tree.relative(folder)!a}] or "
            f"--ignore {shown}",
        )


def _told(
    tree: Tree, found: dict[Path, SplitName], parts: dict[SplitName, list[Path]]
) -> list[str]:
    """Returns in words which folder is which split, and which splits are made."""
    said = []
    other = {f: s for f, s in found.items() if f.name != s and _class_names(tree, f)}
    if other:
        said.append(listed(f"{tree.shown(folder)} is {split}" for folder, split in other.items()))
    missing = [split for split in SPLITS if split not in parts]
    if missing:
        train = listed(tree.shown(f) for f, s in found.items() if s == "train")
        said.append(f"{listed(missing)} {'is' if len(missing) == 1 else 'are'} made from {train}")
    return said


def _are_classes_of_splits(tree: Tree, folders: Sequence[Path]) -> bool:
    """Returns whether every folder holds the same splits, as in `<class>/train`."""
    if len(folders) < 2:
        return False
    kinds = []
    for folder in folders:
        inner = [path.name for path in tree.holding(folder)]
        named = split_names(inner)
        if len(set(named.values())) < 2 or len(named) < len(inner) or tree.own_pictures(folder):
            return False
        kinds.append(frozenset(named.values()))
    return len(set(kinds)) == 1 and "train" in kinds[0]


def _by_class(tree: Tree, here: Path, classes: Sequence[Path], words: list[str]) -> Layout:
    found = []
    for folder in classes:
        tree.refuse_link(folder)
        named = split_names(path.name for path in tree.holding(folder))
        for path in tree.holding(folder):
            tree.refuse_link(path)
            found.append(ClassFolder(named[path.name], folder.name, path))
    words.append("every class folder holds its splits")
    words += made_from_train({folder.split for folder in found})
    found.sort(key=lambda folder: SPLITS.index(folder.split or "train"))
    return _layout(found, words, _loose(tree, here))


def _same_inside(tree: Tree, classes: Sequence[Path]) -> list[str]:
    """Returns a doubt, where classes hold the same folders as splits of unknown names would."""
    inside = {frozenset(plain(path.name) for path in tree.holding(folder)) for folder in classes}
    (first, *more) = inside
    if more or len(first) < 2:
        return []
    return [
        f"{listed([tree.shown(folder) for folder in classes], 5)} are taken for classes, and each "
        f"holds the folders {listed(sorted(map(printable, first)), 5)}: if these are the classes "
        "and the others are splits, call them train, validation and test"
    ]


def no_layout(tree: Tree) -> DataError:
    """Returns what is wrong where neither folders nor a table tell the classes."""
    shown, folders = printable(str(tree.root)), tree.holding(tree.root)
    remedy = (
        "check the path; where a table tells the classes, name it: data.table or --table FILE "
        "(.csv, .tsv or .jsonl, one row for each picture)"
    )
    if _are_only_called_splits(folders):
        names = listed(tree.shown(folder) for folder in folders)
        inside = any(map(tree.holding, folders))
        found = "no class folder in common" if inside else "pictures and no class folders"
        received = f"{names} in {shown} hold {found}"
        return DataError(received, f"pictures as {LAYOUT}", remedy)
    if len(folders) == 1:
        return DataError(
            f"{shown} holds one class only: {tree.shown(folders[0])!r}",
            "at least two classes",
            f"add a folder of pictures of something else; {remedy}",
        )
    every = tree.folders(tree.root)
    if every and not tree.own_pictures(tree.root):
        if len(every) == 1:
            received = f"{shown} holds one class only: {tree.shown(every[0])!r}"
            remedy = f"add a folder of pictures of something else; {remedy}"
            return DataError(received, "at least two classes", remedy)
        return DataError(f"no picture in {shown}", f"pictures as {LAYOUT}", remedy)
    return DataError(f"no class folder in {shown}", f"one folder per class: {LAYOUT}", remedy)
