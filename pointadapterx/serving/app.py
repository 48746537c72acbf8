"""The HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from importlib.resources import files
from pathlib import PurePath, PurePosixPath
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pointadapterx.datasets.images import SUFFIXES
from pointadapterx.datasets.point_files import KINDS
from pointadapterx.serving.admission import LONGEST_NAME
from pointadapterx.serving.guard import Guard
from pointadapterx.serving.limits import RefusedError
from pointadapterx.serving.reading import ARRAY, Upload
from pointadapterx.serving.served import Served
from pointadapterx.serving.service import Service
from pointadapterx.text import json_line, printable

PARTS = {
    "/": ("pointadapterx.serving", "page.html", "text/html"),
    "/page.js": ("pointadapterx.serving", "page.js", "text/javascript"),
    "/page.css": ("pointadapterx.serving", "page.css", "text/css"),
    "/viewer.js": ("pointadapterx.report", "viewer.js", "text/javascript"),
}
"""Parts of the page: package, file and type."""
READ = frozenset({ARRAY, *(f".{kind}" for kind in KINDS), *SUFFIXES})
"""Suffixes of what one adapter or another reads: no body gets a file of another."""
SHOWN = 10  # names of adapters in a refusal
GONE = 499  # as nginx counts clients that did not wait


class Hungup(Exception):
    """The client does not wait for its answer."""


def build_app(service: Service, token: str | None = None, hosts: frozenset[str] | None = None) -> Guard:
    """The interface of a service.

    Args:
        service: that answers.
        token: see :class:`~pointadapterx.serving.guard.Guard`.
        hosts: likewise.
    """
    routes = [
        *(Route(path, _part(*part), methods=["GET"]) for path, part in PARTS.items()),
        Route("/predict", _counted(service, "/predict", _predict), methods=["POST"]),
        Route("/look", _counted(service, "/look", _look), methods=["POST"]),
        Route("/adapters", _counted(service, "/adapters", _adapters), methods=["GET"]),
        Route("/adapters/{name}", _counted(service, "/adapters/NAME", _change), methods=["POST", "DELETE"]),
        Route("/healthz", _health(service), methods=["GET"]),
        Route("/metrics", _metrics(service), methods=["GET"]),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return Guard(app, token, hosts)


Answering = Callable[[Service, Request], Coroutine[Any, Any, Response]]


def _counted(service: Service, path: str, answer: Answering) -> Callable[[Request], Awaitable[Response]]:
    """Turns refusals into responses, and counts all of them."""

    async def endpoint(request: Request) -> Response:
        started = perf_counter()
        try:
            response = await answer(service, request)
        except RefusedError as error:
            response = JSONResponse({"error": str(error)}, error.status, error.headers)
        except (Hungup, ClientDisconnect):
            service.metrics.dropped.inc()
            response = Response(status_code=GONE)
        except asyncio.CancelledError:  # of the server, which ends; it waits for this response
            service.unanswered += 1
            response = JSONResponse({"error": "the server was stopped before it could answer"}, 503)
        except Exception:  # counted here, answered and logged by the framework
            service.metrics.requests.labels(path, 500).inc()
            raise
        service.metrics.requests.labels(path, response.status_code).inc()
        service.metrics.seconds.labels(path).observe(perf_counter() - started)
        return response

    return endpoint


async def _predict(service: Service, request: Request) -> Response:
    said = request.query_params.get("condition")
    names = await _named(service, request)
    return await _answered(service, request, names, lambda upload, lent: service.answer(upload, lent, said))


async def _look(service: Service, request: Request) -> Response:
    names = await _named(service, request)
    if len(names) > 1:
        raise RefusedError(400, f"adapter={names[1]}: look takes one adapter at a time")
    said, saliency = request.query_params.get("condition"), request.query_params.get("saliency") == "1"
    return await _answered(service, request, names, lambda upload, lent: service.look(upload, lent[0], said, saliency))


async def _answered(
    service: Service,
    request: Request,
    names: list[str],
    answer: Callable[[Upload, list[Served]], Coroutine[Any, Any, str]],
) -> Response:
    """Receives the body and answers it, within the limits, and while the client waits."""
    name, suffix = _file(request)
    await service.catalog.require(names)
    _require_kind(suffix, [served for served in map(service.catalog.loaded, names) if served is not None])
    service.admission.require_place()
    with service.admission.upload(name, suffix) as receiving:
        upload = await receiving.take(request.stream(), _declared(request))
        with service.admission.place():
            found = await _unless_gone(request, _by_adapters(service, names, upload, answer), service.limits.timeout)
    return Response(found, media_type="application/json")


async def _by_adapters(
    service: Service, names: list[str], upload: Upload, answer: Callable[[Upload, list[Served]], Awaitable[str]]
) -> str:
    """The answer of adapters, which are loaded where they are not yet."""
    async with service.catalog.lent(names) as adapters:
        _require_kind(PurePath(upload.path).suffix, adapters)
        return await answer(upload, adapters)


def _require_kind(suffix: str, adapters: Sequence[Served]) -> None:
    """Refuses what one of some adapters does not read, or none of any model does."""
    if suffix == ARRAY and not all(served.takes_points for served in adapters):
        raise RefusedError(415, "an adapter for pictures takes files, not arrays")
    for served in adapters if suffix != ARRAY else ():
        served.require_kind(suffix)
    if suffix not in READ:
        found = f"'{printable(suffix[:32])}' is no kind of file" if suffix else "the file's name has no suffix"
        raise RefusedError(415, f"{found} that is read here")


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, str], seconds: float) -> str:
    """The answer, if it comes in time and the client waits for it.

    Raises:
        RefusedError: if it takes longer.
        Hungup: if the client hangs up.
    """
    working, leaving = asyncio.ensure_future(answer), asyncio.ensure_future(_left(request))
    try:
        done, _ = await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    if leaving in done:
        raise Hungup
    raise RefusedError(504, f"no answer within {seconds:g} s; try again, or with fewer points")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _named(service: Service, request: Request) -> list[str]:
    """The adapters that are asked; where the server has one alone, it need not be named."""
    names = list(dict.fromkeys(request.query_params.getlist("adapter")))
    if names:
        return names
    known = await asyncio.to_thread(service.catalog.names)
    if len(known) != 1:
        raise RefusedError(400, _choice(known))
    return known


def _choice(known: Sequence[str]) -> str:
    if not known:
        return "the server has no adapter; put one into its folder, or start it with one"
    more = f", or one of {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"name one of the adapters: adapter={', '.join(known[:SHOWN])}{more}"


def _file(request: Request) -> tuple[str, str]:
    """The name that the client gives to what it sends, and the suffix that says how to read it.

    Raises:
        RefusedError: if there is no name, or it is none.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RefusedError(415, f"Content-Encoding: {printable(encoding[:32])} is not taken; send the file as it is")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise RefusedError(415, "send the file itself and not a form: curl --data-binary @scan.ply '…?file=scan.ply'")
    name = request.query_params.get("file")
    if kind == "application/json":
        return name or "points", ARRAY
    if not name or len(name) > LONGEST_NAME or "\0" in name:
        raise RefusedError(
            400,
            "give the file's name, whose suffix says how to read it: file=scan.ply; for an array, the header "
            "Content-Type: application/json",
        )
    return name, PurePosixPath(name).suffix.lower()


def _declared(request: Request) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _adapters(service: Service, request: Request) -> Response:
    found = await asyncio.to_thread(service.catalog.described)
    return Response(json_line({"adapters": found}), media_type="application/json")


async def _change(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    if request.method == "POST":
        await service.catalog.load(name)
    else:
        await service.catalog.unload(name)
    return JSONResponse({"name": name, "loaded": request.method == "POST"})


def _health(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "the thread that computes has ended"}, 200 if alive else 503)

    return endpoint


def _metrics(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    return endpoint


def _part(package: str, name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = files(package).joinpath(name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint
