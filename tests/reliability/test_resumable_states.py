"""What unfinished and finished work says to a run of another plan; work in which nothing was done says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_evcap.resumable_shards import ResumableShards


def test_states_of_earlier_work(tmp_path: Path) -> None:
    work, done = tmp_path / "work", tmp_path / "results.json"
    ResumableShards(work, {"photos": "a"}, 4, 2, what="evaluation", finished=done)
    shards = ResumableShards(work, {"photos": "b"}, 4, 2, what="evaluation", finished=done)  # nothing was done
    shards.write(0, lambda file: file.write(b"x"))
    with pytest.raises(ValueError, match=r"holds an unfinished evaluation that differs in photos\. Finish that one"):
        ResumableShards(work, {"photos": "c"}, 4, 2, what="evaluation", finished=done)
    shards.write(1, lambda file: file.write(b"x"))
    done.write_text("{}")
    with pytest.raises(
        ValueError, match=r"holds a finished evaluation that differs in photos\. Choose another folder"
    ):
        ResumableShards(work, {"photos": "c"}, 4, 2, what="evaluation", finished=done)
    again = ResumableShards(work, {"photos": "b"}, 4, 2, what="evaluation", finished=done)
    assert again.missing == [] and again.resumed == 2
    anew = ResumableShards(work, {"photos": "c"}, 4, 2, restart=True, what="evaluation", finished=done)
    assert anew.missing == [0, 1]
