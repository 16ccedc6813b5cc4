"""A path is only as safe as each folder and link on the way to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kernel.lib import trust
from kernel.lib.trust import findings

STRANGER = 4242


def refusals(path: Path, **options: object) -> list[str]:
    return [finding.sentence for finding in findings(path, **options) if finding.refused]  # type: ignore[arg-type]


def warnings(path: Path, **options: object) -> list[str]:
    return [finding.sentence for finding in findings(path, **options) if not finding.refused]  # type: ignore[arg-type]


def given_to_a_stranger(path: Path) -> int:
    """Make `path` belong to a user who is neither root nor the one whose number is returned."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, -1)
        return STRANGER + 1
    return os.geteuid() + 1


@pytest.fixture
def private(tmp_path: Path) -> Path:
    path = tmp_path / "private"
    path.mkdir(mode=0o700)
    return path


def test_a_folder_of_ours_is_safe(private: Path) -> None:
    assert findings(private) == []
    assert findings(private / "missing" / "folder") == []


def test_a_folder_that_everyone_can_write_to_is_refused_with_owner_mode_and_remedy(private: Path) -> None:
    private.chmod(0o777)
    (sentence,) = refusals(private)
    assert f"chmod o-w {private}" in sentence
    assert "mode 0777" in sentence
    assert "owner" in sentence


def test_a_folder_that_everyone_can_write_to_is_refused_even_if_it_is_sticky(private: Path) -> None:
    private.chmod(0o1777)
    assert refusals(private)
    assert not refusals(private, sticky=True)
    assert warnings(private, sticky=True), "somebody else may take the names in it first"


def test_a_parent_that_everyone_can_write_to_allows_a_swap(private: Path) -> None:
    folder = private / "a" / "b"
    folder.mkdir(parents=True)
    private.chmod(0o777)
    (sentence,) = refusals(folder)
    assert f"write to {private} (" in sentence
    assert f", on the way to {folder}: " in sentence
    assert refusals(folder / "missing")
    private.chmod(0o1777)
    assert not findings(folder), "in a sticky folder nobody can rename the entries of others"


def test_a_group_that_can_write_is_a_warning(private: Path) -> None:
    private.chmod(0o770)
    if private.stat().st_gid == 0:
        assert findings(private) == [], "only root is in the group of root"
        os.chown(private, -1, STRANGER)
    assert not refusals(private)
    assert f"chmod g-w {private}" in warnings(private)[0]


def test_a_folder_of_another_user_is_refused_by_name(private: Path) -> None:
    user = given_to_a_stranger(private)
    sentence = refusals(private, user=user)[-1]
    assert f"neither you nor root owns {private} (" in sentence


def test_a_parent_of_another_user_is_refused(private: Path) -> None:
    (private / "mine").mkdir()
    user = given_to_a_stranger(private)
    assert any(
        f"owns {private} (" in sentence and "on the way to" in sentence
        for sentence in refusals(private / "mine", user=user)
    )


def test_root_is_only_warned_of_other_owners(private: Path) -> None:
    given_to_a_stranger(private)
    assert not refusals(private, user=0)
    assert warnings(private, user=0)


def test_an_owner_who_is_allowed_is_as_good_as_the_user(private: Path) -> None:
    user = given_to_a_stranger(private)
    assert not findings(private, user=user, owners=(private.stat().st_uid,))


def test_a_link_is_as_safe_as_its_place_and_its_target(private: Path) -> None:
    target, place = private / "target", private / "place"
    target.mkdir()
    place.mkdir()
    (place / "link").symlink_to("../target")
    assert findings(place / "link") == []
    place.chmod(0o777)
    assert refusals(place / "link"), "everyone can replace the link"
    place.chmod(0o700)
    target.chmod(0o777)
    assert refusals(place / "link"), "everyone can write to the target"
    assert refusals(place / "link" / "below")


def test_two_dots_after_a_link_lead_to_the_parent_of_its_target(private: Path) -> None:
    (private / "far" / "target").mkdir(parents=True)
    (private / "far" / "other").mkdir()
    (private / "link").symlink_to("far/target")
    (private / "far" / "other").chmod(0o777)
    assert refusals(private / "link" / ".." / "other")


def test_links_in_a_circle_end(private: Path) -> None:
    (private / "a").symlink_to("b")
    (private / "b").symlink_to("a")
    assert findings(private / "a") == []


def test_a_file_is_checked_like_a_folder(private: Path) -> None:
    file = private / "agent.py"
    file.write_text("")
    assert findings(file) == []
    file.chmod(0o666)
    assert refusals(file)


def test_in_a_user_namespace_the_owners_of_parents_are_unknown(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There / itself belongs to `nobody`: no daemon could start."""
    folder = private / "mine"
    folder.mkdir()
    user = given_to_a_stranger(private)
    unknown = private.stat().st_uid
    (tmp_path / "map").write_text("      1000       1000          1\n")
    (tmp_path / "nobody").write_text(f"{unknown}\n")
    monkeypatch.setattr(trust, "UID_MAP", str(tmp_path / "map"))
    monkeypatch.setattr(trust, "NOBODY", str(tmp_path / "nobody"))
    assert not [sentence for sentence in refusals(folder, user=user) if "on the way to" in sentence]
    assert refusals(private, user=user), "the folder itself must be of a known owner"
