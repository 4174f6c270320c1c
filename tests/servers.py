"""Real servers on loopback: a STAC API, a file server with range requests, an S3 server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import shapely
import uvicorn
from fastapi import Request
from stac_fastapi.api.app import StacApi
from stac_fastapi.api.models import create_post_request_model
from stac_fastapi.extensions import QueryExtension, TokenPaginationExtension
from stac_fastapi.types.config import ApiSettings
from stac_fastapi.types.core import BaseCoreClient
from stac_fastapi.types.errors import NotFoundError
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """An ASGI application in a thread; yields its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


class MemoryClient(BaseCoreClient):
    """A STAC API's core over a list of items: search by box, geometry, dates and collection, with paging."""

    items: list[dict[str, Any]] = []
    collections: list[dict[str, Any]] = []
    seen: list[dict[str, Any]] = []

    def post_search(self, search_request, **kwargs):
        asked = search_request.model_dump(exclude_none=True, mode="json")
        self.seen.append(asked)
        found = [item for item in self.items if self._fits(item, asked)]
        start, limit = int(asked.get("token") or 0), asked.get("limit") or 10
        page = found[start : start + limit]
        links = []
        if start + limit < len(found):
            request: Request = kwargs["request"]
            body = {**asked, "token": str(start + limit)}
            links = [{"rel": "next", "href": str(request.url), "method": "POST", "body": body}]
        return {"type": "FeatureCollection", "features": page, "links": links}

    def get_search(self, **kwargs):
        raise NotImplementedError

    @staticmethod
    def _fits(item: dict[str, Any], asked: dict[str, Any]) -> bool:
        if asked.get("collections") and item["collection"] not in asked["collections"]:
            return False
        if asked.get("bbox"):
            if not shapely.intersects(shapely.from_geojson(json.dumps(item["geometry"])), shapely.box(*asked["bbox"])):
                return False
        start, _, end = (asked.get("datetime") or "../..").partition("/")
        when = item["properties"]["datetime"]
        if (start != ".." and when[:19] < start[:19]) or (end not in ("", "..") and when[:19] > end[:19]):
            return False
        for name, rule in (asked.get("query") or {}).items():
            if "eq" in rule and item["properties"].get(name) != rule["eq"]:
                return False
        return True

    def get_item(self, item_id, collection_id, **kwargs):
        for item in self.items:
            if item["id"] == item_id:
                return item
        raise NotFoundError(item_id)

    def all_collections(self, **kwargs):
        return {"collections": self.collections, "links": []}

    def get_collection(self, collection_id, **kwargs):
        for collection in self.collections:
            if collection["id"] == collection_id:
                return collection
        raise NotFoundError(collection_id)

    def item_collection(self, collection_id, **kwargs):
        raise NotImplementedError


def stac_app(items: list[dict[str, Any]]) -> Any:
    """A STAC API over items."""
    extensions = [QueryExtension(), TokenPaginationExtension()]
    client = MemoryClient()
    client.items, client.seen = items, []
    client.collections = [
        {
            "type": "Collection",
            "stac_version": "1.0.0",
            "id": name,
            "description": name,
            "license": "CC0-1.0",
            "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
            "links": [],
        }
        for name in sorted({item["collection"] for item in items})
    ]
    api = StacApi(
        settings=ApiSettings(enable_response_models=False),
        client=client,
        extensions=extensions,
        search_post_request_model=create_post_request_model(extensions),
    )
    api.app.state.seen = client.seen
    return api.app


class Flaky:
    """An ASGI layer that answers 503 to the first requests, or garbage to all."""

    def __init__(self, app: Any, *, failures: int = 0, garbage: str | None = None) -> None:
        self.app, self.failures, self.garbage, self.requests = app, failures, garbage, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.requests += 1
        if self.garbage is not None:
            return await Response(self.garbage, media_type="text/html")(scope, receive, send)
        if self.requests <= self.failures:
            return await PlainTextResponse("busy", status_code=503)(scope, receive, send)
        return await self.app(scope, receive, send)


def file_app(folder: Path) -> Starlette:
    """Files below a folder, with range requests."""
    return Starlette(routes=[Mount("/", StaticFiles(directory=folder))])


@contextmanager
def serve_s3(folder: Path, bucket: str) -> Iterator[str]:
    """The files below a folder as objects of an S3 bucket; yields host:port."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*.tif")):
            client.upload_file(str(path), bucket, path.relative_to(folder).as_posix())
        yield f"{host}:{port}"
    finally:
        server.stop()


def catalog_items(catalog: Path, base_url: str) -> list[dict[str, Any]]:
    """Items of a static catalogue with their links moved below a base URL (`http://...` or `s3://bucket`)."""
    items = []
    for path in sorted(catalog.parent.glob("*/*.json")):
        item = json.loads(path.read_text())
        if item["type"] != "Feature":
            continue
        for asset in item["assets"].values():
            local = (path.parent / asset["href"]).resolve().relative_to(catalog.parent.resolve())
            asset["href"] = f"{base_url}/{local.as_posix()}"
        assert urlsplit(base_url).scheme
        items.append({**item, "links": []})
    return items
