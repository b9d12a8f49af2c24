"""What an interrupted run left: the journal beside its shards, which says with which settings and how far it came."""

import json
import shutil
from pathlib import Path

from refquant.errors import BadFile
from refquant.models.checkpoint.folder import read_json
from refquant.models.checkpoint.writer import write_json

JOURNAL = "refquant-progress.json"


def take_up(folder: Path, settings: dict, resume: bool) -> dict | None:
    """Return the journal of an interrupted run with these settings; else make the folder anew and return None.

    Raises `BadFile` where a run is to be resumed that had other settings.
    """
    if resume and (folder / JOURNAL).is_file():
        journal = read_json(folder / JOURNAL)
        if journal.get("settings") != json.loads(json.dumps(settings)):  # as JSON has them: lists for tuples
            raise BadFile(f"{folder} was left by a run with other settings; run it with those, or without resume")
        return journal
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return None


def note(folder: Path, values: dict) -> None:
    """Write the journal: to a temporary name, then renamed."""
    partial = folder / f"{JOURNAL}.part"
    write_json(partial, values)
    partial.rename(folder / JOURNAL)
