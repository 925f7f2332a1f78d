"""Puts the inspector into one file, which browsers open from disk too, where they load no modules.

python docs/inspector/standalone.py OUT.html [--specification URL]
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)
SPECIFICATION = re.compile(r'^const SPECIFICATION = "(.*)";$', re.MULTILINE)


def in_order(module: str, before: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A module and all that it needs, each after those that it imports itself."""
    for _, needed in IMPORT.findall((HERE / f"{module}.js").read_text("utf-8")):
        before = in_order(needed, before)
    return before if module in before else (*before, module)


def bundle(main: str) -> str:
    """All modules as one script: each a function that returns what it exports."""
    scripts = []
    for module in in_order(main):
        text = (HERE / f"{module}.js").read_text("utf-8")
        text = IMPORT.sub(lambda found: f"const {{{found[1]}}} = modules.{found[2]};\n", text)
        names = [name for _, name in EXPORT.findall(text)]
        body = EXPORT.sub(r"\1", text)
        scripts.append(f"modules.{module} = (() => {{\n{body}\nreturn {{ {', '.join(names)} }};\n}})();\n")
    return "const modules = {};\n" + "".join(scripts)


def digest(text: str) -> str:
    """What a content security policy knows an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(specification: str | None) -> str:
    """The whole page."""
    html = (HERE / "index.html").read_text("utf-8")
    style = (HERE / "inspector.css").read_text("utf-8")
    script = bundle("inspector")
    if specification is not None:
        script = SPECIFICATION.sub(lambda _: f'const SPECIFICATION = "{specification}";', script)
    parts = {
        '<link rel="stylesheet" href="inspector.css" />': f"<style>{style}</style>",
        '<script type="module" src="inspector.js"></script>': f'<script type="module">{script}</script>',
        "script-src 'self'; style-src 'self'": f"script-src {digest(script)}; style-src {digest(style)}",
    }
    for old, new in parts.items():
        assert html.count(old) == 1, old
        html = html.replace(old, new)
    return html


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--specification", metavar="URL", help="where its rules are to be looked up")
    arguments = parser.parse_args()
    arguments.out.write_text(page(arguments.specification), "utf-8")


if __name__ == "__main__":
    main()
