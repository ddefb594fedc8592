"""What goes wrong on the server's side, told to its operator."""

from __future__ import annotations

from proa.wire.errors import UserError


class ServerError(UserError):
    """The server, its database or its repository cannot be used as asked."""
