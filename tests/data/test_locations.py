"""Where data and vocabulary are looked for."""

from dsbs_jax.data.locations import find_data_dir, find_vocabulary_file


def test_what_is_named_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DSBS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("DSBS_VOCABULARY", "named.model")
    assert find_data_dir() == str(tmp_path)
    assert find_data_dir("here") == "here"
    assert find_vocabulary_file() == "named.model"
    assert find_vocabulary_file("mine.model") == "mine.model"


def test_the_vocabulary_may_lie_in_or_beside_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("DSBS_DATA_DIR", raising=False)
    monkeypatch.delenv("DSBS_VOCABULARY", raising=False)
    assert find_data_dir() is None
    assert find_vocabulary_file() is None
    data = tmp_path / "data"
    for folder in (tmp_path, data):
        (folder / "vocab").mkdir(parents=True)
        (folder / "vocab" / "spiece.model").touch()
        assert find_vocabulary_file(data_dir=str(data)) == str(folder / "vocab" / "spiece.model")
