"""The server behind the page of `textinv review`: its files, concepts, pictures and decisions."""

from __future__ import annotations

import gzip
import json
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from textinv_ray.service.reviewing import decide
from textinv_ray.service.reviewing.access import Guard, cookie_name
from textinv_ray.service.reviewing.gallery import Gallery, Judged, Summary
from textinv_ray.service.reviewing.pictures import Pictures, Size
from textinv_ray.service.store.files import StoreError
from textinv_ray.service.store.records import Decision

logger = logging.getLogger(__name__)

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{
        f"{name}.js": "text/javascript; charset=utf-8"
        for name in ("main", "state", "list", "concept", "curve", "dialogs", "saving", "dom")
    },
}
_MAX_BODY = 8 * 2**20
_WRITERS = 8  # decisions of a selection that are written at once: a remote store takes long for each


class Wanted(BaseModel):
    """A decision as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    concept_id: str = Field(max_length=128)
    fingerprint: str
    verdict: Literal["approved", "rejected", "undecided"]
    note: str = ""
    seen: float | None = None
    """See decide.decide."""


class Wishes(BaseModel):
    """Decisions of one reviewer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    reviewer: str
    decisions: list[Wanted] = Field(max_length=100_000)


@dataclass
class Review:
    """What the server serves."""

    gallery: Gallery
    reviewer: str
    """The name that the page proposes."""
    on_decision: Callable[[Decision], None]
    """Called with each decision after it was written."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def __post_init__(self) -> None:
        self.pictures = Pictures(self.gallery.store)
        self._locks = [threading.Lock() for _ in range(64)]

    def decide(self, reviewer: str, wanted: Wanted) -> dict[str, object]:
        """Writes one decision. Returns what the page is to show: a decision, and an error when it wasn't stored."""
        request = decide.Request(wanted.concept_id, wanted.fingerprint, wanted.verdict, reviewer, wanted.note)
        answer: dict[str, object] = {"concept_id": wanted.concept_id}
        try:
            # Reading and writing a concept's decision is one action
            with self._locks[hash(wanted.concept_id) % len(self._locks)]:
                made = decide.decide(self.gallery.store, request, wanted.seen)
        except decide.DecidedMeanwhileError as error:
            self.gallery.note(error.decision)
            shown = Judged.of(error.decision).model_dump()
            return answer | {"error": "conflict", "message": str(error), "decision": shown}
        except decide.AnotherWordError as error:
            return answer | {"error": "stale", "message": str(error)}
        except decide.DecisionError as error:
            return answer | {"error": "refused", "message": str(error)}
        except StoreError as error:
            return answer | {"error": "store", "message": str(error)}
        self.gallery.note(made)
        self.on_decision(made)
        return answer | {"decision": Judged.of(made).model_dump()}


def app(review: Review, *, port: int, is_loopback: bool) -> Starlette:
    """The web application. is_loopback: see access.Guard."""
    gallery, pool = review.gallery, ThreadPoolExecutor(_WRITERS, "decisions")
    many = TypeAdapter(list[Summary])

    async def page(request: Request) -> Response:
        if "token" not in request.query_params:
            return _file("index.html")
        response = RedirectResponse(
            "/", 303
        )  # so that the token stays neither in the address bar nor in the history
        response.set_cookie(cookie_name(port), review.token, httponly=True, samesite="strict")
        return response

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        return _file(name) if name in _FILES else _nothing()

    def concepts(request: Request) -> Response:
        if "fresh" in request.query_params:
            gallery.read()
        head = {"output": gallery.store.shown, "reviewer": review.reviewer}
        body = b'{"about":' + json.dumps(head).encode()
        body += b',"concepts":' + many.dump_json(gallery.summaries()) + b"}"
        headers = {}
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers = gzip.compress(body, 3), {"Content-Encoding": "gzip"}
        return Response(body, media_type="application/json", headers=headers)

    def concept(request: Request) -> Response:
        found = gallery.detail(request.path_params["id"])
        return Response(found.model_dump_json(), media_type="application/json") if found else _nothing()

    def decisions(request: Request) -> Response:
        return JSONResponse({name: one.model_dump() for name, one in gallery.decisions().items()})

    def picture(request: Request) -> Response:
        found = gallery.result(request.path_params["id"])
        wanted = request.query_params.get("size")
        size: Size = "small" if wanted == "small" else "medium" if wanted == "medium" else "full"
        name, index = request.path_params["grid"], request.path_params["index"]
        data = review.pictures.get(found, name, index, size) if found else None
        if data is None:
            return _nothing()
        headers = {"Cache-Control": "private, max-age=86400"}  # the page's URLs have the result's fingerprint
        kind = "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"
        return Response(data, media_type=kind, headers=headers)

    async def write(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return JSONResponse({"message": "decisions are sent as application/json"}, 415)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY:
                return JSONResponse({"message": "too many decisions at once"}, 413)
        try:
            wishes = Wishes.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            return JSONResponse({"message": f"{place}: {first['msg']}"}, 422)
        answers = await run_in_threadpool(_all, wishes)
        return JSONResponse({"answers": answers})

    def _all(wishes: Wishes) -> Sequence[dict[str, object]]:
        return list(pool.map(lambda wanted: review.decide(wishes.reviewer, wanted), wishes.decisions))

    async def store_error(request: Request, error: Exception) -> Response:
        logger.warning("%s", error)
        return JSONResponse({"message": str(error)}, 503)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/page/{name}", file),
            Route("/api/concepts", concepts),
            Route("/api/concepts/{id}", concept),
            Route("/api/decisions", decisions, methods=["GET"]),
            Route("/api/decisions", write, methods=["POST"]),
            Route("/pictures/{id}/{grid}/{index:int}", picture),
        ],
        middleware=[
            Middleware(Guard, token=review.token, is_loopback=is_loopback),
        ],
        exception_handlers={StoreError: store_error},
    )


def _file(name: str) -> Response:
    data = resources.files("textinv_ray.service.reviewing").joinpath("page", name).read_bytes()
    return Response(data, media_type=_FILES[name])


def _nothing() -> Response:
    return JSONResponse({"message": "there is nothing here"}, 404)
