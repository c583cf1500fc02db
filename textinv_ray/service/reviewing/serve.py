"""`textinv review`: opens the page, and ends it again."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from textinv_ray.service.reviewing import server
from textinv_ray.service.reviewing.access import is_local_name
from textinv_ray.service.reviewing.gallery import Gallery
from textinv_ray.service.reviewing.server import Review
from textinv_ray.service.store.records import Decision
from textinv_ray.service.store.store import Store
from textinv_ray.util.errors import UserError


class ReviewServer:
    """The server of one output. It listens from the beginning and answers while `run` runs."""

    def __init__(
        self,
        store: Store,
        *,
        reviewer: str,
        on_decision: Callable[[Decision], None],
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Reads the store. `port`: 0 for any that is free.

        Raises UserError when there is nothing to review, or when the address can't be listened at.
        """
        gallery = Gallery(store)
        self.count = len(gallery.summaries())
        """Concepts on the page."""
        if not self.count:
            raise UserError(f"{store.shown} has no learned words; give the --output of a job")
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.is_loopback = is_local_name(f"[{host}]" if ":" in host else host)
        review = Review(gallery, reviewer, on_decision)
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/?token={review.token}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                server.app(review, port=self.port, is_loopback=self.is_loopback),
                log_level="warning",
                access_log=False,  # it would have the token
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
            )
        )

    def run(self) -> None:
        """Returns after Ctrl-C, or after `stop` was called in another thread."""
        try:
            self._server.run(sockets=[self._socket])
        except KeyboardInterrupt:  # uvicorn raises it again when it has ended in order
            pass
        finally:
            self._socket.close()

    def stop(self) -> None:
        """Ends `run`."""
        self._server.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except (OSError, UnicodeError) as error:  # the latter for what can't be a host's name
        why = error.strerror if isinstance(error, OSError) else "this is no name of a host"
        raise UserError(f"can't listen at {host}:{port}: {why or error}") from None
    return found
