"""Write checkpoints: every rank its share, in the background if asked to, whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from data_pipeline.base.errors import WriteError
from data_pipeline.base.files import sync
from hrm_dist.checkpoint.reader import (
    STATE_FILE,
    STEP_DIR,
    CheckpointState,
    Part,
    TensorEntry,
    file_of,
    is_up_to,
    name_in_file,
)
from hrm_dist.checkpoint.safetensors_writer import Entry, write_tensors
from hrm_dist.distributed import collectives
from hrm_dist.tensor_shards import Piece

Written = dict[str, tuple[str, list[tuple[str, tuple[int, ...], Part]]]]
"""File -> its sha256, and of everything in it the key, the shape of the whole, and the part."""


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time; call every method on all ranks."""

    def __init__(self, folder: Path, keep: int, *, in_background: bool, timeout_s: float = 1800.0) -> None:
        """`folder`: the run's checkpoints; `keep`: how many of the latest; `timeout_s`: to wait for other ranks."""
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(max_workers=1) if in_background else None
        # The thread's collectives must not come between the main thread's.
        self._group = collectives.background_group(timeout_s) if in_background else None
        self._pending: Future[None] | None = None

    def write(
        self,
        state: CheckpointState,
        pieces: Iterable[Piece],
        names: Sequence[str] = ("latest",),
        *,
        prunes: bool = True,
    ) -> None:
        """Write a checkpoint, point the links `names` to it, and delete old ones if it `prunes`.

        state: but for `tensors` and `sha256`; pieces: this rank's share of the tensors. In the background, they
        are copied before this returns, and an error is raised by the next call.
        """
        self.wait()
        if self._thread is None:
            self._write(state, list(pieces), names, prunes)
            return
        copies = [piece._replace(data=piece.data.detach().to("cpu", copy=True)) for piece in pieces]
        self._pending = self._thread.submit(self._write, state, copies, names, prunes)

    def is_idle(self) -> bool:
        """Whether nothing is being written."""
        return self._pending is None or self._pending.done()

    def raise_failure(self) -> None:
        """Raise the error of a write that has failed; the ranks find out together."""
        if collectives.any_true(
            self._pending is not None and self._pending.done() and bool(self._pending.exception())
        ):
            self.wait()

    def wait(self) -> None:
        """Wait until what was asked for is on disk."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Finish what is under way, whatever becomes of it."""
        if self._thread is not None:
            self._thread.shutdown()

    def _write(self, state: CheckpointState, pieces: list[Piece], names: Sequence[str], prunes: bool) -> None:
        def prepare() -> Path:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                for leftover in self._folder.glob(".step_*"):
                    shutil.rmtree(leftover)
                # A name of its own: ranks of a run that was killed may still be writing.
                temporary = self._folder / f".step_{state.step}.{secrets.token_hex(4)}.tmp"
                temporary.mkdir()
                return temporary
            except OSError as error:
                raise _not_written(self._folder, error) from error

        temporary = collectives.run_on_rank0(prepare, self._group)
        written = collectives.run_on_all_ranks(
            lambda: write_files(temporary, pieces, collectives.rank()), self._group
        )

        def complete() -> None:
            # `latest` moves last: a run killed before that goes on before this step, and comes to `best` again.
            # Where this step is the latest already, and was stopped in its evaluation, `finish` makes the move.
            final = self._folder / f"step_{state.step}"
            replaces_latest = (self._folder / "latest").resolve() == final.resolve()
            before, after = (names, ()) if replaces_latest else ((), names)
            for name in before:
                link(self._folder / name, final)
            finish(temporary, final, state, written)
            for name in after:
                link(self._folder / name, final)
            if prunes:
                prune(self._folder, self._keep)

        collectives.run_on_rank0(complete, self._group)


def write_files(folder: Path, pieces: Sequence[Piece], rank: int) -> Written:
    """Write a rank's files."""
    by_file: dict[str, list[tuple[Entry, Part, Piece]]] = {}
    for piece in pieces:
        name = file_of(piece.key.split(".", 1)[0], rank)
        part = Part(name, piece.place.start, piece.place.start + len(piece.data))
        stored_as = name_in_file(piece.key, part, piece.place.shape)
        shape = (len(piece.data),) if stored_as.endswith("]") else piece.place.shape
        by_file.setdefault(name, []).append((Entry(stored_as, shape, piece.data.dtype), part, piece))
    written: Written = {}
    for name, rows in by_file.items():
        rows.sort(key=lambda row: -row[0].dtype.itemsize)
        path = folder / name
        try:
            digest = write_tensors(
                path, [entry for entry, _, _ in rows], (piece.data for _, _, piece in rows)
            )
        except OSError as error:
            raise _not_written(path, error) from error
        places = [(piece.key, piece.place.shape, part) for _, part, piece in rows]
        written[name] = digest, places
    return written


def _not_written(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{path}: cannot be written on rank {collectives.rank()} ({error.strerror or error}); make room, or look at "
        "the rights. The checkpoints before are whole, and the same command goes on from the latest."
    )


def finish(temporary: Path, final: Path, state: CheckpointState, written: Sequence[Written]) -> None:
    """Write state.json and give the folder its name, in the place of one that has it; see `put_back`."""
    digests = {name: digest for of_rank in written for name, (digest, _) in of_rank.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[Part]] = {}
    for of_rank in written:
        for _, places in of_rank.values():
            for key, shape, part in places:
                shapes[key] = shape
                parts.setdefault(key, []).append(part)
    tensors = {
        key: TensorEntry(shape=shape, parts=tuple(sorted(parts[key], key=lambda part: part.start)))
        for key, shape in shapes.items()
    }
    path = temporary / STATE_FILE
    state = state.model_copy(update={"tensors": tensors, "sha256": digests})
    state = state.model_copy(update={"own_sha256": state.digest()})
    path.write_text(state.model_dump_json(indent=1))
    sync(path)
    sync(temporary)
    replaced = _replaced(final)
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync(final.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def put_back(latest: Path) -> None:
    """Give the checkpoint that a link names its place again, if a run was killed just when another was to take it."""
    final = latest.resolve()
    replaced = _replaced(final)
    if not final.exists() and replaced.exists():
        replaced.rename(final)
        sync(final.parent)


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def link(name: Path, target: Path) -> None:
    """Point a link such as `latest` to a sibling folder, in one atomic step."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, name)
    sync(name.parent)


def set_back(path: Path) -> None:
    """Make a checkpoint its run's latest again; those beyond it get names that nothing looks for."""
    folder, step = path.parent, int(path.name.removeprefix("step_"))
    link(folder / "latest", path)
    best = folder / "best"
    if best.is_symlink() and not is_up_to(best, path):
        best.unlink()
    for other in list(folder.glob("step_*")):
        match = STEP_DIR.fullmatch(other.name)
        if match and int(match[1]) > step:
            abandoned = other.with_name(f"abandoned_{other.name}")
            if abandoned.exists():
                shutil.rmtree(abandoned)
            other.rename(abandoned)
    sync(folder)


def _remove(path: Path) -> None:
    # Renamed first: a half-deleted folder must not look like a checkpoint.
    doomed = path.with_name(f".{path.name}.deleted")
    path.rename(doomed)
    shutil.rmtree(doomed)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints up to `latest`, and those that `latest` and `best` point to.

    What lies beyond `latest` was left by a run that was then set back; it is in nobody's way.
    """
    latest = (folder / "latest").resolve()
    linked = {latest, (folder / "best").resolve()}
    steps = sorted((int(m[1]), p) for p in folder.iterdir() if (m := STEP_DIR.fullmatch(p.name)))
    newest = int(latest.name.removeprefix("step_"))
    for _, path in [(step, path) for step, path in steps if step <= newest][:-keep]:
        if path.resolve() not in linked:
            _remove(path)
