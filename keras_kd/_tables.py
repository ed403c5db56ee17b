"""Rich renderables as text, for `str(...)` and files."""

import io


def plain_text(renderable):
    """Return a rich renderable as text without colors, as wide as needed."""
    from rich.console import Console

    page = io.StringIO()
    look = {"color_system": None, "legacy_windows": False, "force_jupyter": False}
    Console(file=page, width=10_000, **look).print(renderable)
    return "\n".join(line.rstrip() for line in page.getvalue().strip("\n").splitlines())
