import pytest

from flaxformer.training import integrity


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "data").write_bytes(b"0123")
    (tmp_path / "note").write_text("text")
    integrity.seal(tmp_path)
    return tmp_path


def test_an_untouched_folder_is_whole(folder):
    assert integrity.damage(folder) == []


def test_missing_and_changed_files_are_all_named(folder):
    (folder / "note").unlink()
    (folder / "deep" / "data").write_bytes(b"0124")
    assert integrity.damage(folder) == ["changed deep/data", "missing note"]


def test_a_damaged_list_is_damage(folder):
    (folder / integrity.SEAL).write_text("{")
    assert integrity.damage(folder) == ["changed files.json"]


def test_a_folder_without_a_list_is_taken_as_it_is(tmp_path):
    assert integrity.damage(tmp_path) == []
