"""The locks of the images have what pyproject.toml requires; the check names the faults of other locks."""

from __future__ import annotations

from pathlib import Path

import pytest

from docker.lock import FOLDER, check, main, problems, requirements_by_lock

HASH = "--hash=sha256:" + "0" * 64
GOOD = f"# of: click>=8\n# of: h11\n\nclick==8.2 \\\n    {HASH} \\\n    {HASH}\nh11==0.16 \\\n    {HASH}\n"
WANTS = ["click>=8", "h11"]


def test_the_locks_of_the_checkout_are_valid() -> None:
    assert main(["--check"]) == 0


def test_a_valid_lock_has_no_problem() -> None:
    assert list(problems(GOOD, WANTS)) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD.replace("# of: h11\n", ""), "is of other requirements: h11"),
        (GOOD.replace("click==8.2", "click==7.1"), "pins click to 7.1, but click>=8 is required"),
        (GOOD.replace("h11==0.16 \\\n    " + HASH, "h11==0.16"), "has no hash for h11"),
        (GOOD.replace("click==8.2", "clique==8.2"), "has no pin for click"),
        (GOOD + "https://example.com/h11.tar.gz\n", "has a line that is not a pin"),
        (GOOD.replace("click==8.2", "click>=8.2"), "has a line that is not a pin"),
        (GOOD + "--index-url https://example.com\n", "has a line that is not a pin"),
    ],
)
def test_the_faults_of_a_lock_are_named(text: str, problem: str) -> None:
    found = list(problems(text, WANTS))
    assert any(problem in one for one in found), found


def test_each_image_has_its_lock_and_a_missing_one_is_reported(tmp_path: Path) -> None:
    project = {"dependencies": ["trio>=1"], "optional-dependencies": {"server": ["rich>=13"]}}
    locks = requirements_by_lock({"project": project})
    assert (locks["agent"], locks["server"]) == (["trio>=1"], ["rich>=13", "trio>=1"])
    assert all("is missing" in one for one in check(tmp_path, locks))
    assert {file.stem for file in FOLDER.glob("*.txt")} == set(locks)
