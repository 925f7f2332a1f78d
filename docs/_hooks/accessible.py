"""Names and roles where the theme and Markdown leave them out, for those who hear a page."""

from __future__ import annotations

import re
from typing import Any

NAMELESS = re.compile(r"<th[^>]*></th>")


def on_page_content(html: str, **_: Any) -> str:
    """Cells of a head that say nothing are no heads."""
    return NAMELESS.sub("<td></td>", html)


def on_post_page(output: str, **_: Any) -> str:
    """A dialog has a name."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')
