"""Change the JSON files of a dataset so that only what they say is wrong, not their checksums."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.base.files import write_json
from data_pipeline.schema import DOCUMENTS, DatasetInfo


def edit_document(dataset: Path, name: str, edit: Callable[[Any], object]) -> None:
    """Edit the content of a JSON file in place, and note the new checksum in dataset.json."""
    content = json.loads((dataset / name).read_bytes())
    edit(content)
    write_json(dataset / name, content)
    note_checksums(dataset)


def note_checksums(dataset: Path) -> None:
    """Put the checksums of the JSON files as they are now into dataset.json."""
    info = json.loads((dataset / "dataset.json").read_bytes())
    info["documents"] = {
        name: hashlib.sha256((dataset / name).read_bytes()).hexdigest()
        for name in dict.fromkeys((*DOCUMENTS, *info["documents"]))
        if (dataset / name).exists()
    }
    info["sha256"] = DatasetInfo.model_validate(info | {"sha256": ""}).digest()
    write_json(dataset / "dataset.json", info)
