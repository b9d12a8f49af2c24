"""Gather, clean, deduplicate and split the text. `python -m refquant.models.tiny_recipe.gather FOLDER`

Needs pip, and on Debian or Ubuntu apt-get with a `deb-src` line; a source that cannot be fetched is reported and left
out. Writes into FOLDER: archives/ (what was fetched), text/<part>.txt (documents, each ended by a NUL character) and
manifest.json: for every package its registry, version, licence, archives with SHA-256, documents and characters kept.
"""

import argparse
import hashlib
import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np

from refquant.models.tiny_recipe import clean, extract, sources


def read_source(job) -> tuple[str, list[dict]]:
    """Read one package; its documents go to FOLDER/documents/<key>.pickle. Returns (key, archives)."""
    source, folder, version = job
    stored = folder / "documents" / (source.key.replace("/", "~") + ".pickle")
    archives = sources.download(source, folder / "archives", version)
    facts = [
        {
            "file": a.name,
            "version": sources.version_of(a),
            "bytes": a.stat().st_size,
            "sha256": hashlib.sha256(a.read_bytes()).hexdigest(),
        }
        for a in archives
    ]
    if not stored.exists():
        documents = []
        for archive in archives:
            for path, data in sources.members(archive, source):
                if paragraphs := clean.prose(extract.read(path, data)):
                    documents.append((f"{source.key}/{path}", paragraphs))
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(pickle.dumps(documents))
    return source.key, facts


def documents_of(folder: Path, counts: dict):
    """Every document of every source in the table's order, no source beyond its cap, `counts` filled on the way.

    Within a source the order is by hash of the name, so that a cap keeps a sample of all of it.
    """

    def raw():
        for source in sources.SOURCES:
            documents = pickle.loads((folder / "documents" / (source.key.replace("/", "~") + ".pickle")).read_bytes())
            for name, paragraphs in sorted(documents, key=lambda d: hashlib.sha256(d[0].encode()).digest()):
                if counts[source.key]["characters"] < source.cap * 1e6:
                    yield name, paragraphs

    for name, paragraphs in clean.deduplicate(raw()):
        text = "\n\n".join(paragraphs)
        if len(text) >= 400:
            entry = counts["/".join(name.split("/")[:2])]
            entry["documents"] += 1
            entry["characters"] += len(text)
            yield name, text


def split(documents, most_overlap: float = 0.1, held_out_characters: int = 6000) -> dict[str, list[tuple[str, str]]]:
    """Documents by part. A held-out document is cut to its first characters and dropped where it overlaps.

    Overlap is the share of its 8-word shingles found in training, or in the held-out parts that come before it.
    """
    parts = {part: [] for part in clean.PARTS}
    for name, text in documents:
        part = clean.part_of(name)
        if part in ("calibration", "evaluation") and sources.SHARE_ALIKE.match(name):
            continue
        if part != "training" and len(text) > held_out_characters:
            text = text[: text.rfind("\n\n", 0, held_out_characters)] if "\n\n" in text[:held_out_characters] else ""
        if text:
            parts[part].append((name, text))
    known = np.unique(np.concatenate([clean.shingles(t) for _, t in parts["training"]] or [np.zeros(0, np.uint64)]))
    for part in reversed(clean.PARTS[1:]):  # evaluation first
        kept = [(n, t) for n, t in parts[part] if clean.overlap(t, known) <= most_overlap]
        parts[part] = sorted(kept, key=lambda d: hashlib.sha256(d[0].encode()).digest()[8:])
        known = np.unique(np.concatenate([known, *(clean.shingles(t) for _, t in kept)]))
    return parts


def main():
    """Run the whole recipe."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--versions", type=Path, help="a manifest.json whose wheels are fetched, not the newest")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    pinned = {}
    if args.versions:
        pinned = {s["source"]: s["archives"][0]["version"] for s in json.loads(args.versions.read_text())["sources"]}
    jobs = [(s, args.folder, pinned.get(s.key, "")) for s in sources.SOURCES]
    archives = {}
    with multiprocessing.Pool(args.jobs) as pool:
        for key, facts in pool.imap_unordered(read_source, jobs):
            archives[key] = facts
            print(key if facts else f"{key}: NOT FETCHED, left out", flush=True)
    counts = {s.key: {"documents": 0, "characters": 0} for s in sources.SOURCES}
    parts = split(documents_of(args.folder, counts))
    (args.folder / "text").mkdir(exist_ok=True)
    totals = {}
    for part, documents in parts.items():
        text = "\0".join(t for _, t in documents) + "\0"
        (args.folder / "text" / f"{part}.txt").write_text(text)
        (args.folder / "text" / f"{part}.names.txt").write_text("\n".join(n for n, _ in documents) + "\n")
        sha = hashlib.sha256(text.encode()).hexdigest()
        totals[part] = {"documents": len(documents), "characters": len(text), "sha256": sha}
    listed = [
        {"source": s.key, "licence": s.licence, **counts[s.key], "archives": archives[s.key]}
        for s in sources.SOURCES
        if counts[s.key]["documents"]
    ]
    manifest = {"parts": totals, "sources": listed}
    (args.folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(json.dumps(totals, indent=1))


if __name__ == "__main__":
    main()
