"""The long description: README.md for a package index, where no files lie beside it. All else stands in pyproject.toml.

Links to files lead to the repository that ``[project.urls]`` names as ``Repository``. While it names none, only their
text remains, and pictures are left out.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
FENCE = re.compile(r"(^```.*?^```$)", re.M | re.S)
LINK = re.compile(r"(?P<picture>!?)\[(?P<label>[^\[\]]*)\]\((?!\w+:|#)(?P<path>[^()\s]+)\)")


def absolute(text: str, repository: str | None) -> str:
    """Markdown whose links do not depend on where it lies.

    Args:
        text: Markdown with links to files beside it.
        repository: address of the repository; ``None`` leaves no links to files.

    Returns:
        The text; what stands in fences is left as it is.
    """

    def replacement(match: re.Match[str]) -> str:
        if repository is None:
            return "" if match["picture"] else match["label"]
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['label']}]({repository.rstrip('/')}/{kind}/HEAD/{match['path']})"

    parts = FENCE.split(text)
    return "".join(part if k % 2 else LINK.sub(replacement, part) for k, part in enumerate(parts))


def repository(pyproject: str) -> str | None:
    """The address in the text of a pyproject.toml."""
    return tomllib.loads(pyproject)["project"].get("urls", {}).get("Repository")


if __name__ == "__main__":
    home = repository((HERE / "pyproject.toml").read_text(encoding="utf-8"))
    setup(
        long_description=absolute((HERE / "README.md").read_text(encoding="utf-8"), home),
        long_description_content_type="text/markdown",
    )
