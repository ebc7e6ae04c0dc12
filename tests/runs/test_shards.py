"""Outputs appear whole or not at all, survive kills, and are verified when read."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from support import REPOSITORY
from support.written_shards import SCHEMA, make, table, writer_for

from common.errors import UserError
from common.runs.columns import join
from common.runs.edits import accept_edits
from common.runs.layout import Output, Run, shard_name
from common.runs.manifest import has_manifest, publish, read_manifest
from common.runs.schemas import SCHEMA_VERSION
from common.runs.shards import read_named_shard, read_output, read_partial


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Run(tmp_path / "demo").score(1)


def test_nothing_stands_under_the_final_name_before_the_manifest(output: Output) -> None:
    writer = writer_for(output).open()
    writer.write(shard_name(0), table(0))
    assert not output.path.exists()
    assert writer.pending() == [shard_name(1), shard_name(2)]
    make(output)
    assert sorted(p.name for p in output.path.iterdir()) == [
        "manifest.json",
        *(shard_name(i) for i in range(3)),
    ]
    assert not output.partial.exists()
    assert read_output(output).num_rows == 9


def test_resuming_keeps_verified_shards_and_gives_the_same_content(output: Output) -> None:
    make(output)
    uninterrupted = read_manifest(output).content_hash
    output.path.rename(output.path.with_name("reference"))
    writer = writer_for(output).open()
    writer.write(shard_name(1), table(1))
    writer.write(shard_name(2), table(2))
    kept = (output.partial / shard_name(1)).stat().st_mtime_ns
    damaged = output.partial / shard_name(2)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = writer_for(output).open()
    assert again.pending() == [shard_name(0), shard_name(2)]
    make(output)
    assert read_manifest(output).content_hash == uninterrupted
    assert (output.path / shard_name(1)).stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    "change", [{"inputs": {"prompts": "xyz"}}, {"recipe": {}}, {"seed": 1}], ids=str
)
def test_a_partial_output_of_other_inputs_is_begun_anew(
    output: Output, change: dict[str, object]
) -> None:
    writer_for(output).open().write(shard_name(0), table(0))
    assert len(writer_for(output, **change).open().pending()) == 3


def test_remaking_leaves_the_old_output_until_the_new_is_complete(output: Output) -> None:
    make(output)
    before = read_manifest(output).content_hash
    writer = writer_for(output, seed=1).open()
    for index, name in enumerate(writer.names):
        writer.write(name, table(index + 10))
        assert read_manifest(output).content_hash == before
        read_output(output)
    writer.commit()
    assert read_manifest(output).content_hash != before
    assert not output.replaced.exists()


@pytest.mark.parametrize("moment", ["before first rename", "between renames", "before removal"])
def test_publish_completes_what_a_kill_interrupted(output: Output, moment: str) -> None:
    make(output)
    writer = writer_for(output, seed=1).open()
    for index, name in enumerate(writer.names):
        writer.write(name, table(index + 10))
    new = writer.commit(publish_output=False).content_hash
    if moment != "before first rename":
        output.path.rename(output.replaced)
    if moment == "before removal":
        output.partial.rename(output.path)
    publish(output)
    publish(output)
    assert read_manifest(output).content_hash == new
    assert {p.name for p in output.path.parent.iterdir()} == {"score"}


def test_every_flipped_bit_is_found(output: Output) -> None:
    make(output)
    path = output.path / shard_name(1)
    good = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(bad))
        with pytest.raises(UserError, match="sha256") as caught:
            read_output(output)
        assert "stages.score --run demo --iteration 1 --overwrite" in str(caught.value)
    path.write_bytes(good)
    read_output(output)


def test_an_edit_with_polars_is_refused_until_accepted(output: Output) -> None:
    make(output)
    path = output.path / shard_name(0)
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("values").list.eval(pl.element() * 2)).write_parquet(path)
    with pytest.raises(UserError, match="--accept-edits"):
        read_output(output)
    before = read_manifest(output)
    assert accept_edits(output, SCHEMA) == [shard_name(0)]
    after = read_manifest(output)
    assert after.edited
    assert after.content_hash != before.content_hash
    assert read_output(output).schema.field("values").type == pa.list_(pa.float32())
    assert read_output(output).column("values").to_pylist()[1] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda f: f.reverse(), "rollout_id was changed"),
        (lambda f: f.head(2), "rollout_id was changed"),
        (lambda f: f.drop("values"), "missing"),
        (lambda f: f.with_columns(note=pl.lit("x")), "superfluous"),
        (lambda f: f.with_columns(values=pl.lit("x")), "does not fit"),
        (lambda f: f.with_columns(values=pl.lit(None, pl.List(pl.Float32))), "nulls"),
    ],
)
def test_edits_that_break_the_contract_are_refused(output: Output, edit: object, said: str) -> None:
    make(output)
    path = output.path / shard_name(0)
    edit(pl.read_parquet(path)).write_parquet(path)  # type: ignore[operator]
    edited = path.read_bytes()
    with pytest.raises(UserError, match=said):
        accept_edits(output, SCHEMA)
    assert path.read_bytes() == edited, "a refused edit stays as the user wrote it"


def test_damage_does_not_pass_for_an_edit(output: Output) -> None:
    """Flipped bits are not accepted, unless (in a footer's free text) they changed no value."""
    make(output)
    path = output.path / shard_name(0)
    good = path.read_bytes()
    values = read_output(output).to_pylist()
    manifest = output.manifest.read_text()
    generator = random.Random(2)
    refused = 0
    for _ in range(80):
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(bad))
        output.manifest.write_text(manifest)
        try:
            accept_edits(output, SCHEMA)
        except UserError:
            refused += 1
        else:
            assert read_output(output).to_pylist() == values
    assert refused > 10


def test_a_missing_shard_cannot_be_accepted(output: Output) -> None:
    make(output)
    (output.path / shard_name(1)).unlink()
    with pytest.raises(UserError, match="is missing; make it again"):
        accept_edits(output, SCHEMA)


def test_a_full_disk_says_what_it_needs_and_leaves_nothing(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(output)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = writer_for(output, seed=1).open()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"bytes to write, \d+ free"):
        writer.write(shard_name(0), table(0))
    assert not list(output.partial.glob(".tmp-*"))
    read_output(output)


def test_a_shard_is_found_by_its_name(output: Output) -> None:
    make(output)
    assert read_named_shard(output, shard_name(1), ["values"]).equals(table(1).select(["values"]))


def test_what_stopped_before_its_commit_is_read_once_it_is_whole(output: Output) -> None:
    assert read_partial(output) is None
    writer = writer_for(output).open()
    for index, name in enumerate(writer.names):
        assert read_partial(output) is None, "a shard is missing"
        writer.write(name, table(index))
    found = read_partial(output)
    assert found is not None
    inputs, shards = found
    assert inputs == {"prompts": "abc"}
    assert pa.concat_tables(shards).equals(pa.concat_tables(map(table, range(3))))


def test_join_wants_the_same_keys_in_the_same_order() -> None:
    right = table(0).rename_columns(["rollout_id", "other"])
    joined = join(table(0), right, key="rollout_id", names=("rollout", "score"))
    assert joined.schema.names == ["rollout_id", "values", "other"]
    for wrong in (right.slice(1), pa.concat_tables([right.slice(1), right.slice(0, 1)])):
        with pytest.raises(UserError, match="score does not match rollout"):
            join(table(0), wrong, key="rollout_id", names=("rollout", "score"))


def test_a_manifest_of_another_version_or_another_stage_is_refused(output: Output) -> None:
    make(output)
    text = output.manifest.read_text()
    version = f'"schema_version": {SCHEMA_VERSION}'
    for other, remedy in ((99, "update staged-grpo"), (1, "begin another RUN")):
        output.manifest.write_text(text.replace(version, f'"schema_version": {other}'))
        with pytest.raises(UserError, match=f"schema version {other}, .*{remedy}"):
            read_manifest(output)
    output.manifest.write_text(text.replace('"iteration": 1', '"iteration": 2'))
    with pytest.raises(UserError, match="iteration 2"):
        read_manifest(output)
    output.manifest.write_text(text[:50])
    with pytest.raises(UserError, match="damaged manifest"):
        read_manifest(output)


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.written_shards import make
from common.runs.layout import Run
print("ready", flush=True)
make(Run(Path({root!r})).score(1))
"""


def test_kill_at_random_moments_then_rerun_gives_the_same_content(tmp_path: Path) -> None:
    """Each trial kills the writer after a random delay; the rerun must equal the reference, and
    whatever stands under the final name at any time must be whole."""
    reference = Run(tmp_path / "reference").score(1)
    make(reference)
    generator = random.Random(1)
    for trial in range(8):
        run = Run(tmp_path / f"trial{trial}")
        code = CHILD.format(tests=str(REPOSITORY / "tests"), root=str(run.root))
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(generator.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if has_manifest(run.score(1)):
            read_output(run.score(1))
        else:
            publish(run.score(1))
            if not has_manifest(run.score(1)):
                make(run.score(1))
        found = read_manifest(run.score(1)).content_hash
        assert found == read_manifest(reference).content_hash
        assert {p.name for p in run.score(1).path.parent.iterdir()} == {"score"}
