"""TLS handshakes, counted among the connections and limited as they are.

asyncio's own server knows nothing of a connection before its handshake is done, however long that
takes and however many there are. So sockets are accepted here and handed over to it one by one.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

from distill.teacher_server.http.connection import HEAD_S, Connections

NO_FILE_NUMBER_S = 0.05  # to wait where none is free
BACKLOG = 2048


class Handshakes:
    """make: a protocol for a new connection. context: the certificate of now."""

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        connections: Connections,
        context: Callable[[], ssl.SSLContext],
    ) -> None:
        self._make, self._connections, self._context = make, connections, context
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket) -> None:
        """Take connections until it is cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        try:
            while True:
                try:
                    accepted, _ = await loop.sock_accept(listener)
                except OSError:
                    self._connections.make_room()
                    await asyncio.sleep(NO_FILE_NUMBER_S)
                    continue
                task = loop.create_task(self._shake_hands(accepted))
                self._tasks.add(task)
                self._connections.opened(task, task.cancel)
                task.add_done_callback(self._done)
        finally:
            for task in self._tasks:
                task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._connections.closed(task)

    async def _shake_hands(self, accepted: socket.socket) -> None:
        """Ends where the handshake does, or with the connection where it fails."""
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, accepted, ssl=self._context(), ssl_handshake_timeout=HEAD_S
            )
        except (OSError, asyncio.CancelledError):
            accepted.close()
