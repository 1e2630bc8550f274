"""Pages of the repository outside of docs/ in the site, links between both, and nothing from other hosts.

mkdocs calls the functions ``on_…`` (``hooks`` of mkdocs.yml). Every page is written so that its links work on GitHub:
those to what the site has too lead to it there, those to other files lead to GitHub.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "https://github.com/equikern/equikern"
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "bench/**/README.md", "bench/**/results/*.png")
LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")
FENCE = re.compile(r"^ *(```|~~~)")
LOADED = re.compile(r"<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)")
LINKED = re.compile(r"<link\b[^>]*>")
IMPORTED = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """The pages and pictures of PAGES are files of the site, at their places in the repository."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if "work" not in path.parts[len(ROOT.parts) :]:  # an experiment's own folder, which git ignores
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """The page with its links from the repository's places to those of the site, or to GitHub."""
    lines, code = [], False
    for line in markdown.split("\n"):
        code ^= bool(FENCE.match(line))
        lines.append(line if code else LINK.sub(lambda match: _moved(match[1], page.file, files), line))
    return "\n".join(lines)


def _moved(link: str, file: File, files: Files) -> str:
    if re.match(r"[a-z]+:|#", link):
        return link
    target, mark, anchor = link.partition("#")
    here = file.src_uri if file.generated_by else f"docs/{file.src_uri}"
    place = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
    site = place.removeprefix("docs/")
    if files.get_file_from_path(site) is not None:
        return posixpath.relpath(site, posixpath.dirname(file.src_uri) or ".") + mark + anchor
    if (ROOT / place).exists():
        return f"{PROJECT}/{'tree' if (ROOT / place).is_dir() else 'blob'}/main/{place}{mark}{anchor}"
    return link  # mkdocs says that it leads nowhere


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Nothing of a page is loaded from another host."""
    foreign = LOADED.findall(output)
    for link in LINKED.findall(output):
        if re.search(r"rel=[\"']?(?:stylesheet|icon|preload|preconnect|dns-prefetch|modulepreload)", link):
            foreign += re.findall(r"href=[\"']?((?:https?:)?//[^\"'\s>]+)", link)
    if foreign:
        raise PluginError(f"{page.file.src_uri} loads from other hosts: {', '.join(foreign)}")
    return output


def on_post_build(config: Any) -> None:
    """Nor does a style sheet."""
    for path in sorted(Path(config.site_dir).rglob("*.css")):
        if foreign := IMPORTED.findall(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path} loads from other hosts: {', '.join(foreign)}")
