"""Pieces of unfinished work: kept, checked, and used by the run that they belong to only."""

import numpy as np
import pytest

from stagecraft.runtime.journal import JOURNAL, Pieces, kept_array, kept_record


def make_all(folder, fingerprint, made):
    """Five arrays and a record from pieces in `folder`; the names of those that had to be made are added to `made`."""
    pieces = Pieces(folder, fingerprint)

    def make(i):
        made.append(i)
        if len(made) == made_before_the_kill:
            raise KeyboardInterrupt
        return np.arange(4) + i

    arrays = [kept_array(pieces, f"{i}.npy", lambda i=i: make(i)) for i in range(5)]
    record = kept_record(pieces, "r.json", lambda: {"sum": float(made.append("r") or sum(map(np.sum, arrays)))})
    return [array.tolist() for array in arrays], record


made_before_the_kill = None


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A folder of pieces whose run was ended while it made the fourth."""
    monkeypatch.setitem(globals(), "made_before_the_kill", 4)
    with pytest.raises(KeyboardInterrupt):
        make_all(tmp_path / "pieces", {"a": 1}, [])
    monkeypatch.setitem(globals(), "made_before_the_kill", None)
    return tmp_path / "pieces"


def test_only_missing_pieces_are_made(killed, tmp_path):
    made = []
    again = make_all(killed, {"a": 1}, made)
    assert made == [3, 4, "r"]
    assert again == make_all(tmp_path / "other", {"a": 1}, [])
    assert make_all(killed, {"a": 1}, made) == again and made == [3, 4, "r"]


def test_pieces_of_other_params_are_deleted_and_the_log_says_so(killed, capsys):
    made = []
    make_all(killed, {"a": 2}, made)
    assert made == [0, 1, 2, 3, 4, "r"]
    line = f"{killed}: made with other params or inputs; not used, starting anew"
    assert line in capsys.readouterr().err.splitlines()


def test_a_damaged_piece_is_named_and_made_again_once_deleted(killed):
    data = bytearray((killed / "1.npy").read_bytes())
    data[-1] ^= 1
    (killed / "1.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"pieces/1\.npy: damaged, .*; delete it to make it again"):
        make_all(killed, {"a": 1}, [])
    (killed / "1.npy").unlink()
    made = []
    make_all(killed, {"a": 1}, made)
    assert made == [1, 3, 4, "r"]


def test_a_damaged_journal_is_named(killed):
    (killed / JOURNAL).write_text((killed / JOURNAL).read_text()[:-20])
    with pytest.raises(ValueError, match=r"pieces\.json: not valid JSON .*; delete it"):
        Pieces(killed, {"a": 1})


def test_a_file_that_was_written_but_not_entered_is_made_again(killed):
    (killed / "3.npy").write_bytes(b"complete, or perhaps not")
    (killed / ".4.npy.77.tmp").write_bytes(b"half")
    made = []
    make_all(killed, {"a": 1}, made)
    assert made == [3, 4, "r"] and not list(killed.glob("*.tmp")) and not list(killed.glob(".*"))
