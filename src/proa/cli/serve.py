"""``proa serve``: the update server."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from proa.cli import options

EPILOG = """\
Machines ask at URL/v1/update/ (SERVER= in their update.conf) and fetch files below URL/repository/.
When it is ready it prints one line, "listening on http://HOST:PORT". What it answers to machines
is logged to stderr. SIGINT and SIGTERM end it after the requests that are being answered.

examples:
  proa serve
  proa serve --listen 0.0.0.0:8080 --public-url https://updates.example.org
  proa serve --repo /srv/proa --db /var/lib/proa/server.db --online-keys /etc/proa/online

exit status: 0 ended by a signal; 2 usage; 3 online keys are missing; 9 the database cannot be used;
10 the address cannot be listened on
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``proa``'s command line."""
    parser = subparsers.add_parser(
        "serve",
        help="run the update server",
        description="Answer machines that ask for updates, and serve the repository's files.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_repo(parser)
    options.add_database(parser)
    parser.add_argument(
        "--listen",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="where to listen; port 0 picks a free one (default: %(default)s)",
    )
    parser.add_argument(
        "--public-url", metavar="URL", help="the URL that machines know this server by"
    )
    parser.add_argument(
        "--online-keys",
        type=Path,
        metavar="DIR",
        help="sign the repository's freshness with snapshot.pem and timestamp.pem in DIR",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; see its ``--help``."""
    from proa.factory.keys import KeysError
    from proa.server import run as server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    host, port = server.parse_listen(args.listen)
    if args.online_keys and not args.online_keys.is_dir():
        raise KeysError(f"there are no online keys in {args.online_keys}")
    settings = server.Settings(
        repository=args.repo,
        database=args.db,
        host=host,
        port=port,
        public_url=args.public_url,
        refresh=refresher(args.repo, args.online_keys) if args.online_keys else None,
    )
    server.serve(settings, lambda url: print(f"listening on {url}", flush=True))
    return 0


def refresher(repo: Path, online_keys: Path) -> Callable[[datetime], datetime]:
    """Return what signs a repository's freshness once half of it is gone.

    Called with the time, it returns when to call it again. The server may not import the factory,
    which signs; a command line may import both.
    """
    from proa.factory import repository

    def refresh(now: datetime) -> datetime:
        lifetimes = repository.DEFAULT_LIFETIMES
        # The lock is held while a release is copied; better to look again than to wait for it.
        signed = repository.refresh(repo, online_keys, now, force=False, lock_seconds=1)
        return min(
            signed.timestamp - lifetimes.timestamp / 2, signed.snapshot - lifetimes.snapshot / 2
        )

    return refresh
