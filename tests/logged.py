"""What a run has left for W&B and TensorBoard, read back from its files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = 32768  # of W&B's file, a log of LevelDB's form, in which records are cut at the ends of blocks
_COMPLETE, _LAST = 1, 4
_HEADER = 7


class Logged(NamedTuple):
    """The content of an offline run's folder."""

    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """In the order of logging, merged by W&B where they were of one step."""
    summary: dict[str, Any]
    axes: dict[str, str]
    """Of each curve, the name of what it is plotted over."""
    files: Path


def wandb_runs(run: Path) -> list[Logged]:
    """Read all offline folders of a run, in the order of its starts."""
    return [_read(path) for path in sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))]


def _read(path: Path) -> Logged:
    logged = Logged({}, [], {}, {}, path.parent / "files")
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            logged.config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "history":
            logged.rows.append(_nested(record.history.item))
        elif kind == "summary":
            logged.summary.update(_nested(record.summary.update))
        elif kind == "metric" and record.metric.step_metric:
            logged.axes[record.metric.name] = record.metric.step_metric
    return logged


def _nested(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = values
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return values


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    data, content = path.read_bytes(), b""
    assert data.startswith(b":W&B")
    place = _HEADER
    while place < len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        content += data[place + _HEADER : place + _HEADER + size]
        place += _HEADER + size
        if kind in (_COMPLETE, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            content = b""
            yield record


def events(run: Path) -> Any:
    """Read a run's TensorBoard files as TensorBoard does, keeping all of them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    return EventAccumulator(str(run / "tensorboard"), size_guidance=everything).Reload()


def texts(run: Path, tag: str) -> dict[int, str]:
    """Return a tag's texts by step, read as TensorBoard's server does."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), tensor_size_guidance={"text": 0}).Reload()
    return {
        event.step: event.tensor_proto.string_val[0].decode()
        for event in found.Tensors(f"{tag}/text_summary")
    }
