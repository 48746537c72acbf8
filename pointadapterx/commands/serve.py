"""Serve adapters over HTTP, with a page to try them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pointadapterx.commands.options import UsageError, add_device, add_engine, add_weights, on_ray, require_positive
from pointadapterx.errors import ConfigError
from pointadapterx.optional import need_all

PACKAGES = ("starlette", "uvicorn", "prometheus_client")
MEBI = 2**20
EXAMPLES = """\
  %(prog)s                                       the shipped adapter, at http://127.0.0.1:8000/
  %(prog)s runs/demo/<time> tools=b.safetensors  two adapters, the second by another name
  %(prog)s --adapters FOLDER --port 9000         all adapters of a folder, loaded when asked for
  %(prog)s --adapters FOLDER --engine ray --address HOST:6379 --replicas 4
  %(prog)s a.safetensors --host 0.0.0.0 --token-file FILE
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    parser.add_argument(
        "adapters",
        nargs="*",
        metavar="ADAPTER",
        help="adapter file, run folder or hf://owner/repository, or NAME=one of these (default: the shipped adapter)",
    )
    parser.add_argument(
        "--adapters",
        dest="folder",
        type=Path,
        metavar="DIR",
        help="folder whose adapter files can be asked for by name, too",
    )
    place = parser.add_argument_group("place")
    place.add_argument("--port", type=int, default=8000, help="0 chooses a free one (default: 8000)")
    place.add_argument("--host", default="127.0.0.1", help="other than this machine's own: with a token alone")
    place.add_argument(
        "--token-file", type=Path, metavar="FILE", help="token of the clients (default: $POINTADAPTERX_TOKEN, or none)"
    )
    model = parser.add_argument_group("model")
    add_weights(model)
    add_device(model)
    model.add_argument("--precision", choices=["auto", "fp32", "bf16"], help="default: the adapters'")
    model.add_argument("--top", type=int, default=3, help="classes in an answer (default: 3)")
    model.add_argument("--batch-size", type=int, default=32, metavar="N", help="samples at a time (default: 32)")
    model.add_argument(
        "--wait", type=float, default=2.0, metavar="MS", help="milliseconds to wait for more of them (default: 2)"
    )
    model.add_argument(
        "--memory", type=int, default=4096, metavar="MIB", help="for backbones and adapters (default: 4096)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--upload", type=int, default=64, metavar="MIB", help="of one request (default: 64)")
    limits.add_argument("--points", type=int, default=2_000_000, metavar="N", help="of a cloud (default: 2,000,000)")
    limits.add_argument("--queue", type=int, default=256, metavar="N", help="requests that wait (default: 256)")
    limits.add_argument("--queue-memory", type=int, default=512, metavar="MIB", help="of them all (default: 512)")
    limits.add_argument("--timeout", type=float, default=60.0, metavar="S", help="seconds to an answer (default: 60)")
    limits.add_argument("--drain", type=float, default=30.0, metavar="S", help="seconds to stop in (default: 30)")
    limits.add_argument("--readers", type=int, default=2, metavar="N", help="processes that read files (default: 2)")
    cluster = parser.add_argument_group("cluster", "limits are those of each replica")
    add_engine(cluster, "answers")
    cluster.add_argument("--replicas", type=int, metavar="N", help="only with --engine ray (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C.

    Returns:
        0 once what was accepted is answered.
    """
    positive = ("top", "batch_size", "memory", "upload", "points", "queue", "queue_memory", "readers", "replicas")
    require_positive(options, *positive)
    for name in ("wait", "timeout", "drain"):
        if not 0 <= getattr(options, name) < 86_400:
            raise UsageError(f"--{name} {getattr(options, name)}: between 0 and a day")
    cluster = on_ray(options)
    if options.replicas is not None and not cluster:
        raise UsageError("--replicas belongs to --engine ray")
    need_all(PACKAGES, "serve needs", "serve", ConfigError)
    from pointadapterx.checkpoints.shipped import ADAPTERS, READY
    from pointadapterx.engine.console import log_warnings_to
    from pointadapterx.serving import server
    from pointadapterx.serving.catalog import named
    from pointadapterx.serving.limits import Limits
    from pointadapterx.serving.served import Answering

    log_warnings_to(sys.stderr)
    if options.folder is not None and not options.folder.is_dir():
        raise UsageError(f"--adapters {options.folder}: is no folder")
    sources = named(options.adapters)
    if not sources and options.folder is None:
        sources = {READY: str(ADAPTERS / f"{READY}.safetensors")}
    limits = Limits(
        upload=options.upload * MEBI,
        points=options.points,
        queue=options.queue,
        queue_bytes=options.queue_memory * MEBI,
        timeout=options.timeout,
        drain=options.drain,
        batch=options.batch_size,
        wait=options.wait / 1000,
        memory=options.memory * MEBI,
        readers=options.readers,
    )
    answering = Answering(options.device, options.precision, options.weights, options.top)
    token = server.token_of(options.token_file, os.environ.get("POINTADAPTERX_TOKEN"))
    place = server.Place(options.host, options.port, token)
    if cluster:
        from pointadapterx.cluster import serving

        serving.run(sources, options.folder, answering, limits, place, options.replicas or 1, options.address)
    else:
        server.run(sources, options.folder, answering, limits, place)
    return 0
