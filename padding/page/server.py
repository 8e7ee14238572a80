# SPDX-License-Identifier: Apache-2.0
"""Serve the page: on this machine unless told otherwise, its files in a folder that goes with it."""

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from padding.errors import ConfigError
from padding.page.guard import MAX_UPLOAD_MB, Guard
from padding.page.models import PageModel

MAX_PIXELS = 40_000_000
"""Pixels of an uploaded image, which a small file can claim to have; Pillow refuses twice as many."""


@contextmanager
def served(
    models: Mapping[str, PageModel], *, host: str = "127.0.0.1", port: int | None = None, names: Sequence[str] = ()
) -> Iterator[str]:
    """Serve the page until the ``with`` ends.

    Uploads, pictures and downloads lie in a temporary folder, the only one that is served, and are deleted with it.

    Args:
        models: by name, at least one.
        host: interface; 0.0.0.0 for all of them.
        port: None: the first free one from 7860 on; 0: any free one.
        names: further ones that browsers call this machine by; requests under another name are refused.

    Yields:
        The page's address.

    Raises:
        ConfigError: gradio is not installed, or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="page_") as name:
        folder = Path(name).resolve()
        _quiet_framework(folder)
        from padding.page.layout import build_page, look

        page = build_page(models, folder / "labels")
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=_free_port() if port == 0 else port,
                **_closed({host, *names}, folder),
                **look(),
            )
        except OSError as error:
            raise ConfigError(f"{error}; choose another --port") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def _quiet_framework(folder: Path) -> None:
    """Set what gradio reads when it is imported: where files lie, and that nobody is told."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    for variable in ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE", "GRADIO_ROOT_PATH", "GRADIO_SERVER_NAME"):
        os.environ.pop(variable, None)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error}; the page needs gradio: pip install '.[app]'") from error


def _closed(names: set[str], folder: Path) -> dict[str, Any]:
    """Arguments of gradio's ``launch``: small uploads, no files but those of the folder, no other way in."""
    from starlette.middleware import Middleware

    called = {*names, "127.0.0.1", "localhost", "[::1]", socket.gethostname()}
    here = Path.cwd()
    return {
        "share": False,
        "max_file_size": MAX_UPLOAD_MB * 2**20,
        "max_threads": 4,
        "allowed_paths": [],
        "blocked_paths": [] if folder.is_relative_to(here) else [str(here)],
        "app_kwargs": {"middleware": [Middleware(Guard, hosts=called, uploads=folder)]},
        "strict_cors": True,
        "enable_monitoring": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "footer_links": [],
        "quiet": True,
        "prevent_thread_lock": True,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
