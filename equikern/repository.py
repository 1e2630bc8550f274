"""What messages tell of the repository: how an extra is installed, where a page of the documentation is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ADDRESS", "install", "place"]

ADDRESS = "https://github.com/equikern/equikern"


def _checkout() -> Path | None:
    """The folder that this package is imported from, if it is the repository and not where pip installs."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "constraints.txt").exists() and (folder / "pyproject.toml").exists() else None


def install(extra: str) -> str:
    """The command that installs an extra; in a checkout with the versions that are tested.

    Example:
        >>> "[demo]" in install("demo")
        True
    """
    return f'pip install -c constraints.txt -e ".[{extra}]"' if _checkout() else f'pip install "equikern[{extra}]"'


def place(path: str) -> str:
    """Where a file or folder of the repository is: in the checkout, else its address.

    Example:
        >>> place("no/such/page.md")
        'https://github.com/equikern/equikern/blob/main/no/such/page.md'
    """
    folder = _checkout()
    if folder is not None and (folder / path).exists():
        return str(folder / path)
    return f"{ADDRESS}/{'blob' if Path(path).suffix else 'tree'}/main/{path}"
