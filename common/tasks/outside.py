"""Files outside a run that its prompts and its policy 0 were made from, and what became of them.

A run keeps its prompts: they are never made again because a file has changed. But a corrected file
must not be ignored without a word either, so the manifest of the prompts has the hash of each file,
and `make iteration` asks once what is to be done about another content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from common.config import DatasetSource, Source
from common.console import python
from common.errors import UserError
from common.runs.hashing import sha256_of_file
from common.runs.layout import Run
from common.runs.manifest import FileRecord, has_manifest, read_manifest, write_manifest
from common.tasks.files import files_of
from common.tasks.hub import is_saved_to_disk


def data_files(data: Mapping[str, Source]) -> list[Path]:
    """Return the local files that a recipe's [data] is read from, as far as they exist."""
    found: list[Path] = []
    for source in data.values():
        if not isinstance(source, DatasetSource):
            continue
        splits = [(source.path, source.train_split)]
        if source.eval and (source.eval_path or source.eval_split):
            eval_path = source.eval_path or source.path
            splits.append((eval_path, source.eval_split or source.train_split))
        for name, split in splits:
            path = Path(name).expanduser()
            if is_saved_to_disk(path):
                found += sorted(p for p in path.rglob("*") if p.is_file())
            elif path.exists():
                found += files_of(path, split)
    return list(dict.fromkeys(path.absolute() for path in found))


def outside_records(
    files: Iterable[Path], known: Mapping[str, str] | None = None
) -> dict[str, FileRecord]:
    """Return the record of each file under its absolute path, for a manifest.

    Args:
        known: sha256 of files by their path, as far as they have been hashed already.
    """
    known = known or {}
    paths = [path.absolute() for path in files]
    return {str(path): FileRecord.of(path, sha256=known.get(str(path))) for path in paths}


def changed_files(run: Run, data: Mapping[str, Source]) -> dict[str, str]:
    """Return what has become of the files that a prepared run was made from, by path.

    A file that has vanished is no change, for the run has what it needs of it.

    Args:
        data: the recipe's [data], whose folders may have further files by now.
    """
    if not has_manifest(run.prompts):
        return {}
    recorded = read_manifest(run.prompts).outside
    changed = {
        path: "has another content now"
        for path, record in recorded.items()
        if Path(path).is_file() and not _is_same(Path(path), record)
    }
    try:
        files = data_files(data) if recorded else []
    except UserError:  # what is gone cannot be listed
        files = []
    return changed | {str(path): "is new" for path in files if str(path) not in recorded}


def accept_changed_files(run: Run, data: Mapping[str, Source]) -> list[str]:
    """Record the content that changed files have now, and return their paths.

    The prompts and policy 0 stay as they are, and the files are not asked about again until their
    content is another one.
    """
    changed = list(changed_files(run, data))
    if changed:
        manifest = read_manifest(run.prompts)
        outside = manifest.outside | outside_records(map(Path, changed))
        write_manifest(run.prompts.path, manifest.model_copy(update={"outside": outside}))
    return changed


def what_to_do(run: Run, changed: Mapping[str, str]) -> str:
    """Return which files have changed, and the two commands that there are for it."""
    lines = [f"{path}: {how}, since run {run.name!r} was prepared" for path, how in changed.items()]
    prepare = f"{python()} -m stages.prepare --run {run.name}"
    stale = run.last_policy()
    makes_stale = f" ({stale} finished iterations become stale)" if stale > 0 else ""
    return "\n".join(
        [
            *lines,
            f"  Go on with the prompts and policy 0 as they are:  {prepare} --accept-edits",
            f"  Make both again{makes_stale}:  {prepare} --overwrite",
        ]
    )


def _is_same(path: Path, record: FileRecord) -> bool:
    """Return whether a file has the content of a record; it is hashed only if its stat differs.

    Times of the inode are not compared, since every hard link to a file changes them.
    """
    now = record.seen(path)
    if (now.bytes, now.mtime_ns, now.inode) == (record.bytes, record.mtime_ns, record.inode):
        return True
    return now.bytes == record.bytes and sha256_of_file(path) == record.sha256
