"""Write checkpoints: every rank its share, whole or not at all. They are written in the background if asked for."""

import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from data_pipeline.base.errors import InputError, WriteError, unwritable
from data_pipeline.base.files import make_folder, replace_file, sync
from hrm_dist.checkpoint import pointer
from hrm_dist.checkpoint.reader import (
    STATE_FILE,
    CheckpointState,
    StoredRange,
    TensorEntry,
    file_of,
    is_up_to,
    is_whole,
    name_in_file,
    read_state,
    saved_steps,
)
from hrm_dist.checkpoint.safetensors_writer import Entry, write_tensors
from hrm_dist.distributed import collectives
from hrm_dist.tensor_shards import TensorShard

Written = tuple[dict[str, str], list[tuple[str, tuple[int, ...], StoredRange]]]
"""Sha256 of each file of a rank; of everything in them the key, the shape of the whole tensor, and the range."""


class CheckpointWriter:
    """Write the checkpoints of a run, one at a time; call every method on all ranks."""

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
        shards: Iterable[TensorShard],
        names: Sequence[str] = ("latest",),
        *,
        prunes: bool = True,
    ) -> None:
        """Write a checkpoint, let `names` lead to it, and delete old ones if it `prunes`.

        state: but for `tensors` and `sha256`; shards: this rank's share of the tensors. In the background, they
        are copied before this returns, and an error is raised by the next call. Where `latest` is of this step, its
        tensors are left as they are: no step was made, but the evaluation that a signal had stopped.
        """
        self.wait()
        if self._thread is None:
            self._write(state, list(shards), names, prunes)
            return
        copies = [shard._replace(data=shard.data.detach().to("cpu", copy=True)) for shard in shards]
        self._pending = self._thread.submit(self._write, state, copies, names, prunes)

    def is_idle(self) -> bool:
        """Return whether nothing is being written."""
        return self._pending is None or self._pending.done()

    def raise_failure(self) -> None:
        """Raise the error of a write that has failed; the ranks find out together."""
        pending = self._pending
        if collectives.any_true(pending is not None and pending.done() and bool(pending.exception())):
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

    def _write(
        self, state: CheckpointState, shards: list[TensorShard], names: Sequence[str], prunes: bool
    ) -> None:
        final = self._folder / f"step_{state.step}"

        def prepare() -> Path | None:
            if pointer.target(self._folder / "latest") == pointer.target(final) and final.is_dir():
                return None
            try:
                make_folder(self._folder)
                for leftover in self._folder.glob(".step_*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                # A name of its own: ranks of a run that was killed may still be writing.
                temporary = self._folder / f".step_{state.step}.{secrets.token_hex(4)}.tmp"
                temporary.mkdir()
                return temporary
            except OSError as error:
                raise _not_written(self._folder, error) from error

        def complete() -> None:
            try:
                if temporary is not None:
                    finish(temporary, final, state, written)
                # `latest` moves last: a run killed before that resumes before this step, and comes to `best` again.
                for name in names:
                    pointer.point(self._folder / name, final)
                if temporary is None:  # likewise
                    _replace_state(final, state)
                if prunes:
                    prune(self._folder, self._keep)
            except OSError as error:
                raise _not_written(self._folder, error) from error

        temporary = collectives.run_on_rank0(prepare, self._group)
        written: list[Written] = []
        try:
            if temporary is not None:
                written = collectives.run_on_all_ranks(
                    lambda: write_files(temporary, shards, collectives.rank()), self._group
                )
            collectives.run_on_rank0(complete, self._group)
        except Exception:
            if temporary is not None and collectives.is_main():
                shutil.rmtree(temporary, ignore_errors=True)  # it takes room that may be what is missing
            raise


def write_files(folder: Path, shards: Sequence[TensorShard], rank: int) -> Written:
    """Write a rank's files."""
    by_file: dict[str, list[tuple[Entry, StoredRange, TensorShard]]] = {}
    for shard in shards:
        name = file_of(shard.key.split(".", 1)[0], rank)
        stored = StoredRange(name, shard.offset, shard.offset + len(shard.data))
        stored_as = name_in_file(shard.key, stored, shard.shape)
        shape = (len(shard.data),) if stored_as.endswith("]") else shard.shape
        by_file.setdefault(name, []).append((Entry(stored_as, shape, shard.data.dtype), stored, shard))
    digests: dict[str, str] = {}
    for name, content in by_file.items():
        content.sort(key=lambda item: -item[0].dtype.itemsize)
        path = folder / name
        try:
            digests[name] = write_tensors(
                path, [entry for entry, _, _ in content], (shard.data for _, _, shard in content)
            )
        except OSError as error:
            raise _not_written(path, error) from error
    return digests, [
        (shard.key, shard.shape, stored) for content in by_file.values() for _, stored, shard in content
    ]


def _not_written(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"{path}: cannot be written on rank {collectives.rank()} ({error.strerror or error}); make room, or look at "
        "the rights. The checkpoints before are whole, and the same command resumes from the latest."
    )


def finish(temporary: Path, final: Path, state: CheckpointState, written: Sequence[Written]) -> None:
    """Write state.json and give the folder its name; one that has it was saved, but never became the latest."""
    digests = {name: digest for of_rank, _ in written for name, digest in of_rank.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    ranges = defaultdict[str, list[StoredRange]](list)
    for key, shape, stored in chain.from_iterable(content for _, content in written):
        shapes[key] = shape
        ranges[key].append(stored)
    tensors = {
        key: TensorEntry(shape=shape, parts=tuple(sorted(ranges[key], key=lambda stored: stored.start)))
        for key, shape in shapes.items()
    }
    _write_state(temporary, state.model_copy(update={"tensors": tensors, "sha256": digests}))
    sync(temporary)
    if final.exists():
        _remove(final)
    temporary.rename(final)
    sync(final.parent)


def _write_state(folder: Path, state: CheckpointState) -> None:
    state = state.model_copy(update={"own_sha256": state.digest()})
    replace_file(folder / STATE_FILE, state.model_dump_json(indent=1, exclude_unset=True).encode())


def _replace_state(folder: Path, state: CheckpointState) -> None:
    """Note in a checkpoint what an evaluation has changed since it was written."""
    changed = {name: getattr(state, name) for name in ("metric_sums", "best_score", "evaluation_is_due")}
    _write_state(folder, read_state(folder).model_copy(update=changed))


def restore_pointers(folder: Path) -> None:
    """Make `latest` and `best` lead to checkpoints again where a copy of the run has folders instead.

    Raise InputError for a folder that is damaged, or differs from the checkpoint of its step.
    """
    for name in (folder / name for name in pointer.NAMES):
        if name.is_symlink() or not name.is_dir():
            continue
        try:
            state = read_state(name)
            twin = folder / f"step_{state.step}"
            if not twin.exists():
                name.rename(twin)
            elif is_whole(twin) and read_state(twin).own_sha256 == state.own_sha256:
                _remove(name)
            else:
                raise InputError(f"its checkpoint is not the one of {twin.name}")
            pointer.point(name, twin)
        except OSError as error:
            raise unwritable(name, error) from error
        except InputError as error:
            raise InputError(
                f"{name}: is a folder where a link should be, as in a copy of a run, and cannot be replaced by one "
                f"({error}); delete it, and the run resumes from the newest of its step_N folders."
            ) from error


def rewind(path: Path) -> None:
    """Make a checkpoint its run's latest again; those beyond it get names that nothing looks for."""
    folder, step = path.parent, int(path.name.removeprefix("step_"))
    pointer.point(folder / "latest", path)
    best = folder / "best"
    if pointer.is_pointer(best) and not is_up_to(best, path):
        best.unlink()
    for beyond, other in saved_steps(folder):
        if beyond > step:
            abandoned = other.with_name(f"abandoned_{other.name}")
            if abandoned.exists():
                shutil.rmtree(abandoned)
            other.rename(abandoned)
    sync(folder)


def _remove(path: Path) -> None:
    # Renamed first: a half-deleted folder must not look like a checkpoint. What cannot be deleted yet, since somebody
    # reads it over NFS, goes with the next checkpoint.
    doomed = path.with_name(f".step_of_{path.name}.{secrets.token_hex(4)}.deleted")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints up to `latest`, and those that `latest` and `best` point to.

    What lies beyond `latest` was left by a run that was killed before that moved.
    """
    latest = pointer.target(folder / "latest")
    kept = {latest, pointer.target(folder / "best")}
    newest = int(latest.name.removeprefix("step_"))
    for path in [path for step, path in saved_steps(folder) if step <= newest][:-keep]:
        if pointer.target(path) not in kept:
            _remove(path)
