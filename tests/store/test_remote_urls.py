"""Which URLs name a store, and which are refused before anything is asked."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.store.objects import LocalObjects
from pipeline.store.places import open_objects
from schemas.errors import MissingExtraError, UsageError


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("simplecache::file:///etc/hostname", "chained"),
        ("simplecache::s3://bucket/a", "chained"),
        ("zip://a.zip::s3://bucket/b", "chained"),
        ("filecache::http://169.254.169.254/latest", "chained"),
        ("s3://bucket/a::file:///etc", "chained"),
        ("zip:///tmp/a.zip", "known kind"),
        ("reference://x", "known kind"),
        ("simplecache://x", "known kind"),
        ("local:///etc", "known kind"),
        ("data://x", "known kind"),
        ("s4://bucket/a", "did you mean"),
        ("S3X://bucket/a", "known kind"),
        ("://x", "known kind"),
        (" s3://bucket", "known kind"),
        ("s3:///a", "BUCKET"),
        ("s3://", "BUCKET"),
        ("s3://bucket:9000/a", "BUCKET"),
        ("s3://bucket/a?versionId=1", "BUCKET"),
        ("s3://bucket/a#b", "BUCKET"),
        ("s3://key:secret@bucket/a", "without credentials"),
        ("s3://key@bucket/a", "without credentials"),
        ("sftp://user:secret@host/a", "without credentials"),
        ("https://user:secret@host/a", "without credentials"),
    ],
)
def test_what_names_no_single_place_is_refused(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        open_objects(url)
    assert "secret" not in f"{caught.value.message}{caught.value.where}"


def test_a_folder_is_a_folder_however_it_is_written(tmp_path: Path) -> None:
    for text in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        objects = open_objects(text)
        assert isinstance(objects, LocalObjects)
        assert objects.root == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="came a file"):
        open_objects(tmp_path / "file")
    with pytest.raises(UsageError, match="storage_options"):
        open_objects(tmp_path, {"key": "x"})


def test_s3_urls_are_written_in_one_way() -> None:
    for url in ("s3://bucket/a/b", "s3://bucket/a/b/", "s3a://bucket/a/b", "S3://bucket/a/b"):
        assert open_objects(url).url == "s3://bucket/a/b"
    assert open_objects("s3://bucket").url == open_objects("s3://bucket/").url == "s3://bucket"


def test_options_travel_but_are_not_shown() -> None:
    objects = open_objects("s3://bucket/a", {"key": "k", "secret": "hidden"}, single_writer=True)
    assert "hidden" not in repr(objects)
    there = pickle.loads(pickle.dumps(objects))
    assert there._options == {"key": "k", "secret": "hidden"}
    assert there._single_writer
    assert there.url == objects.url


def test_a_kind_of_url_without_its_package_says_what_to_install() -> None:
    objects = open_objects("oss://bucket/a")
    with pytest.raises(MissingExtraError, match="ossfs"):
        objects.read("penstock.json")


def test_options_that_nobody_knows_are_refused() -> None:
    with pytest.raises(UsageError, match="storage_options"):
        open_objects("s3://bucket/a", {"no_such_option": 1}).read("penstock.json")
