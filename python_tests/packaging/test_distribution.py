"""The source distribution: all that git tracks, a page for the registry; what CITATION.cff and CHANGELOG.md say."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import equikern
import pytest
import yaml
from equikern.repository import ADDRESS, install, place
from helpers.repository import ROOT

LEFT_OUT = {".gitignore"}
MADE = {"PKG-INFO", "setup.cfg"}  # and equikern.egg-info


def _setuptools() -> int:
    try:
        return int(version("setuptools").partition(".")[0])
    except PackageNotFoundError:
        return 0


def git(*arguments: str, given: str = "") -> set[str]:
    """The files that git names."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone, so nobody knows what git tracks")
    run = subprocess.run(["git", "-C", str(ROOT), *arguments], input=given, capture_output=True, text=True)
    assert run.returncode in (0, 1), run.stderr  # 1: check-ignore found none
    return set(filter(None, run.stdout.split("\0")))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the source distribution holds: the files by name, the page's text."""
    if _setuptools() < 77 or find_spec("pybind11") is None:
        pytest.skip("setup.py is run here without isolation: needs setuptools 77 and pybind11")
    folder = str(tmp_path_factory.mktemp("sdist"))
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", folder, "sdist", "-d", folder]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (path,) = Path(folder).glob("*.tar.gz")
    with tarfile.open(path) as tar:
        kept = {member.name.partition("/")[2]: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() if name == "PKG-INFO" else b"" for name, file in kept.items() if file is not None}


def test_it_holds_what_git_tracks(archive: dict[str, bytes]) -> None:
    assert git("ls-files", "-z") - archive.keys() == LEFT_OUT


def test_it_holds_nothing_that_git_ignores(archive: dict[str, bytes]) -> None:
    """No builds, data sets or checkpoints."""
    others = archive.keys() - MADE - {name for name in archive if name.startswith("equikern.egg-info/")}
    assert git("check-ignore", "-z", "--stdin", given="\0".join(others)) == set()


def test_it_can_be_built_and_tested(archive: dict[str, bytes]) -> None:
    """Also where there is no git to ask."""
    sources = {f.relative_to(ROOT).as_posix() for f in (ROOT / "csrc").rglob("*") if f.is_file()}
    wanted = {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "equikern/py.typed", "equikern/_C.pyi"}
    wanted |= {"bench/command.py", "docs/packaging.md", "python_tests/conftest.py", "python_tests/recipes.txt"}
    assert sources | wanted <= archive.keys()
    assert not [name for name in archive if name.endswith((".so", "_build.json", ".pyc"))]


def test_the_page_of_a_registry(archive: dict[str, bytes]) -> None:
    """README.md with whole addresses, so that links lead somewhere; its code as it stands."""
    said = Parser().parsestr(archive["PKG-INFO"].decode())
    page, readme = said.get_payload(), (ROOT / "README.md").read_text(encoding="utf-8")
    assert isinstance(page, str)
    assert said["Description-Content-Type"] == "text/markdown"
    assert page.split("```")[1::2] == readme.split("```")[1::2]
    assert len(page.split("```")) > 3
    links = re.findall(r"(!?)\[[^]]*\]\(([^)\s]*)", "".join(page.split("```")[::2]))
    assert links
    for picture, link in links:
        assert link.startswith(("https://", "#"))
        ours = link.removeprefix(f"{ADDRESS}/{'raw' if picture else 'blob'}/main/")
        assert ours == link or (ROOT / ours.partition("#")[0]).exists(), link
    addresses = dict(url.split(", ") for url in said.get_all("Project-URL", []))
    assert addresses.keys() == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert all(address.startswith(ADDRESS) for address in addresses.values())


def test_the_citation_and_the_changes_name_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == equikern.__version__
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (cited["version"], cited["date-released"])
    papers = {paper["url"].rpartition("/")[2] for paper in cited["references"]}
    assert papers == {"2210.06475", "2305.09900", "2310.09675"}
    assert all(paper["authors"] and paper["title"] and paper["year"] for paper in cited["references"])


def test_where_messages_say_that_things_are() -> None:
    """setup.py, which imports nothing of the package, has the same address."""
    assert f'\nREPOSITORY = "{ADDRESS}"\n' in (ROOT / "setup.py").read_text(encoding="utf-8")
    if Path(equikern.__file__).parents[1] == ROOT:
        assert install("demo") == 'pip install -c constraints.txt -e ".[demo]"'
        assert place("docs/recipes.md") == str(ROOT / "docs/recipes.md")
    assert place("docs/none") == f"{ADDRESS}/tree/main/docs/none"
