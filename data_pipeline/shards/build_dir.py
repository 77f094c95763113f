"""A dataset's folder while it is being built.

What is asked for, what is there, and what makes it a dataset.

DIR/building/  build.json          what is being built; the same command only goes on with the same
               head.json           the content of dataset.json but for the sizes
               train.json test.json   the content of the splits' index.json but for the shards
               part-0-of-1.jsonl   the shards that a process has written, a line each
               part-0-of-1.lock    held while it runs; says on which host, as which process

dataset.json is written last of all, and without it nothing is a dataset. A build that was killed has lost no
more than the shards that were being written.
"""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.base import jsonl, locks
from data_pipeline.base.errors import InputError, WriteError, unwritable
from data_pipeline.base.files import TEMPORARY_SUFFIX, make_folder, put_if_missing, write_json
from data_pipeline.base.models import reason_of
from data_pipeline.base.parallel import Part, map_threads
from data_pipeline.base.progress import progress_bar
from data_pipeline.options import side_by_side
from data_pipeline.schema import (
    BUILDING,
    DOCUMENTS,
    SPLITS,
    WINDOWS,
    DatasetHead,
    DatasetInfo,
    Identity,
    ShardIndex,
    SplitIndex,
    SplitInfo,
    SplitLayout,
    SplitName,
    Splits,
    load_dataset_info,
    load_document,
)
from data_pipeline.shards.reader import verify_shard
from data_pipeline.shards.writer import ShardId, WrittenShard, shard_ids

JOBS = "jobs"
"""Folder in that of a dataset with the scripts and logs of jobs that build it; it is theirs, and left alone."""


def note(journal: Path, shards: Iterable[WrittenShard]) -> None:
    """Note shards that are on disk in the journal of the process that has written them."""
    lines = [json.dumps([*shard_id, entry.model_dump()], separators=(",", ":")) for shard_id, entry in shards]
    try:
        jsonl.append(journal, *lines)
    except OSError as error:
        raise unwritable(journal, error) from None


def find(out: Path, identity: Identity) -> DatasetInfo | None:
    """Return the dataset in a folder, if it is complete and the one asked for; None if it has to be built.

    Raise InputError for a folder with something else in it, or another dataset, or the beginnings of one.
    """
    building = out / BUILDING
    try:
        names = {path.name for path in out.iterdir()} if out.exists() else set[str]()
    except OSError as error:
        raise InputError(f"{out}: cannot be read ({error.strerror}); choose another --out.") from None
    if "dataset.json" in names:
        info = load_dataset_info(out)
        _refuse_other(out, "built", info.identity, identity)
        remove_leftovers(out)
        return info
    if (building / "build.json").exists():
        _refuse_other(out, "begun", load_document(building / "build.json", Identity), identity)
    elif names - {BUILDING, JOBS}:
        raise InputError(f"{out}: exists and is no dataset; choose another --out or delete it.")
    return None


def remove_leftovers(out: Path) -> None:
    """Take away what a build leaves that was killed at its very end."""
    shutil.rmtree(out / BUILDING, ignore_errors=True)
    for folder in (out, *(out / split for split in SPLITS)):
        for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)


def _refuse_other(out: Path, verb: str, there: Identity, asked: Identity) -> None:
    if there == asked:
        return
    differences: list[str] = []
    names_there, names = ([source.name for source in side.sources] for side in (there, asked))
    if there.kind != asked.kind:
        differences.append(f"of kind {there.kind}, not {asked.kind}")
    elif names_there != names:
        differences.append(
            f"from {', '.join(names_there) or 'no source'}, not from {', '.join(names) or 'no source'}"
        )
    else:
        differences += [
            f"from another content of {source.name}, which has changed since"
            for before, source in zip(there.sources, asked.sources, strict=True)
            if before != source
        ]
        settings_there, settings = (
            {"seed": side.seed, **side_by_side(side.options)} for side in (there, asked)
        )
        differences += [
            f"with {key}={settings_there.get(key)}, not {settings.get(key)}"
            for key in settings_there | settings
            if settings_there.get(key) != settings.get(key)
        ]
    raise InputError(f"{out}: was {verb} {' and '.join(differences)}; choose another --out or delete it.")


@contextmanager
def begin(out: Path, identity: Identity, part: Part) -> Generator[Path]:
    """Make the folder, if it is not there, take a part of the work, and yield its journal.

    Raise InputError when the folder cannot be made, another process works on the part, or the folder has become
    another build's meanwhile. Where the block raises one for anything but lack of room, before it has written
    layouts, the folder goes again.
    """
    building = out / BUILDING
    is_new = not building.exists()
    journal = building / f"part-{part.number}-of-{part.count}.jsonl"
    with ExitStack() as stack:
        try:
            make_folder(building)
            _lock(stack, journal, out)
            journal.touch()
            _claim(out, identity)  # before anything that only a build of this dataset has there
            for split in SPLITS:
                (out / split).mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(out, error) from None
        try:
            yield journal
        except WriteError:
            raise  # what is there is needed when there is room again
        except InputError:
            if (
                is_new
                and not (building / "train.json").exists()
                and len(list(building.glob("part-*.jsonl"))) == 1
            ):
                with suppress(OSError):  # something else has come into it
                    shutil.rmtree(building)
                    for folder in (*(out / split for split in SPLITS), out):
                        folder.rmdir()
            raise


def _claim(out: Path, identity: Identity) -> None:
    """Note what is being built, unless another part has; then it must be the same."""
    path = out / BUILDING / "build.json"
    draft = path.with_name(f"build-{socket.gethostname()}-{os.getpid()}.json")
    write_json(draft, identity.model_dump())
    put_if_missing(draft, path)
    _refuse_other(out, "begun", load_document(path, Identity), identity)
    if (out / "dataset.json").exists():
        raise InputError(f"{out}: another process has just completed it; run the command again to check it.")


def _lock(stack: ExitStack, journal: Path, out: Path) -> None:
    """Hold a part's lock as long as the stack; raise InputError if another process builds it."""
    try:
        stack.enter_context(locks.hold(journal.with_suffix(".lock")))
    except locks.LockedError as error:
        raise InputError(
            f"{out}: another process is building it ({journal.stem}: {error}); wait for it or stop it first."
        ) from None


def write_layouts(
    out: Path, head: DatasetHead, layouts: Iterable[SplitLayout], documents: Mapping[str, object]
) -> None:
    """Write all that is known before the shards are there."""
    for layout in layouts:
        write_json(out / BUILDING / f"{layout.split}.json", layout.model_dump())
    for name, content in documents.items():
        write_json(out / name, content)
    write_json(out / BUILDING / "head.json", head.model_dump())


def written_shards(out: Path) -> dict[ShardId, ShardIndex]:
    """Return the shards that are noted in any journal and whose files are there; raise InputError."""
    shards: dict[ShardId, ShardIndex] = {}
    for journal in sorted((out / BUILDING).glob("part-*.jsonl")):
        for line in jsonl.lines(journal):
            try:
                split, row, number, index = json.loads(line)
                shard_id = ShardId(split, row, number)
                shards[shard_id] = ShardIndex.model_validate(index)
            except (ValueError, TypeError) as error:
                raise InputError(
                    f"{journal}: damaged ({reason_of(error)}); delete it and build its part again."
                ) from None
    found: dict[ShardId, ShardIndex] = {}
    for shard_id, index in shards.items():
        with suppress(OSError):
            if (out / shard_id.file).stat().st_size == index.size_bytes:
                found[shard_id] = index
    return found


def missing_parts(dataset: Path, num_parts: int) -> list[int]:
    """Tell which parts of a build by `--part I/num_parts` have shards to write; all of a folder that has none.

    Those of a merged dataset are there, whatever their number. Raise InputError for a damaged folder.
    """
    if (dataset / "dataset.json").exists():
        return []
    if not (dataset / BUILDING / "head.json").exists():  # comes after the layouts
        return list(range(num_parts))
    ids = _all_ids(_layouts(dataset))
    return _parts_with(set(ids) - written_shards(dataset).keys(), ids, num_parts)


def _layouts(out: Path) -> list[SplitLayout]:
    return [load_document(out / BUILDING / f"{split}.json", SplitLayout) for split in SPLITS]


def _all_ids(layouts: Iterable[SplitLayout]) -> list[ShardId]:
    return [shard_id for layout in layouts for shard_id in shard_ids(layout)]


def finish(out: Path, *, show_progress: bool) -> DatasetInfo:
    """Verify every shard, write the indices, and make the folder a dataset.

    Raise InputError naming what is missing or damaged.
    """
    building = out / BUILDING
    head = load_document(building / "head.json", DatasetHead)
    infos: dict[SplitName, SplitInfo] = {}
    with ExitStack() as stack:
        for journal in building.glob("part-*.jsonl"):  # none may be at work
            _lock(stack, journal, out)
        written = written_shards(out)
        layouts = _layouts(out)
        ids = _all_ids(layouts)
        _refuse_missing(out, [shard_id for shard_id in ids if shard_id not in written], ids)
        _verify(out, {shard_id: written[shard_id] for shard_id in ids}, show_progress=show_progress)
        for layout in layouts:
            shards = tuple(written[shard_id] for shard_id in shard_ids(layout))
            try:
                index = SplitIndex(**dict(layout), shards=shards)
            except ValidationError as error:
                raise InputError(
                    f"{building}: its journals contradict {layout.split}.json ({reason_of(error)}); "
                    "delete the folder above it and build again."
                ) from None
            infos[layout.split] = index.sizes()
            write_json(out / layout.split / "index.json", index.model_dump())
        names = (*DOCUMENTS, WINDOWS) if (out / WINDOWS).exists() else DOCUMENTS
        checksums = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
        splits = Splits(train=infos["train"], test=infos["test"])
        info = DatasetInfo(**dict(head), splits=splits, documents=checksums, sha256="")
        info = info.model_copy(update={"sha256": info.digest()})
        write_json(out / "dataset.json", info.model_dump())
        remove_leftovers(out)
    return info


def _refuse_missing(out: Path, missing: list[ShardId], ids: list[ShardId]) -> None:
    if not missing:
        return
    counts = {int(journal.stem.rpartition("-")[2]) for journal in (out / BUILDING).glob("part-*.jsonl")}
    remedy = "run the command that began it again"
    if len(counts) == 1 and counts != {1}:
        [count] = counts
        numbers = _parts_with(missing, ids, count)
        shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
        remedy = f"build with --part I/{count} for I = {shown} (again), then merge"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise InputError(f"{out / missing[0].file}{more}: missing; {remedy}.")


def _parts_with(missing: Iterable[ShardId], ids: list[ShardId], num_parts: int) -> list[int]:
    sought = set(missing)
    return [n for n in range(num_parts) if not sought.isdisjoint(Part(n, num_parts).share(ids))]


def _verify(out: Path, shards: Mapping[ShardId, ShardIndex], *, show_progress: bool) -> None:
    def check(shard_id: ShardId) -> None:
        remedy = "delete this file, and run the command that built it again"
        verify_shard(out / shard_id.split, shards[shard_id], remedy)

    with progress_bar("verifying", "shard", len(shards), shown=show_progress) as progress:
        for _ in map_threads(check, shards):
            progress.update()
