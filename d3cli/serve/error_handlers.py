"""Turns whatever goes wrong with a request into OpenAI's form of an error."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from d3cli.base.errors import D3Error
from d3cli.serve.errors import ApiError, as_api_error
from d3cli.serve.fields import ChatFields, ChatMessage, Part, StreamOptions, TextFields

LONGEST_PARAM = 100  # characters; a client may have made up the name
NAMES = frozenset().union(
    *(kind.model_fields for kind in (ChatFields, TextFields, ChatMessage, Part, StreamOptions))
)


def add_error_handlers(app: FastAPI) -> None:
    """Makes the application answer every error in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return _response(error)

    @app.exception_handler(D3Error)
    async def unusable(request: Request, error: D3Error) -> JSONResponse:
        return _response(as_api_error(error, _prompt_field(request)))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return _response(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        response = _response(_of_http(error))
        response.headers.update(error.headers or {})  # the methods that a path allows
        return response

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return _response(as_api_error(error, _prompt_field(request)))


def of_validation(errors: Sequence[Any]) -> ApiError:
    """The error for what pydantic found: about the first field that is wrong."""
    first = errors[0]
    kind, where = first["type"], first["loc"][1:]
    if kind == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if kind == "extra_forbidden":
        param = _path(where[:-1]) + (f".{where[-1]}" if len(where) > 1 else str(where[-1]))
        return ApiError(
            400,
            f"unrecognized request argument supplied: {param[:LONGEST_PARAM]}",
            param=param[:LONGEST_PARAM],
            code="unknown_parameter",
        )
    param = _path(where)
    if not param:
        return ApiError(
            400,
            "the body must be a JSON object, with Content-Type: application/json",
            code="invalid_json",
        )
    if kind == "missing":
        return ApiError(
            400,
            f"missing required parameter: {param}",
            param=param,
            code="missing_required_parameter",
        )
    same = [one["msg"] for one in errors if _path(one["loc"][1:]) == param]
    told = ", or ".join(dict.fromkeys(same))
    return ApiError(400, f"{param}: {told}", param=param, code="invalid_type")


def _path(where: Sequence[int | str]) -> str:
    """A place in the body: ``messages[0].content``. Pydantic's names of types are left out."""
    path = ""
    for step in where:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step in NAMES:
            path += f".{step}" if path else step
        else:
            break
    return path


def _of_http(error: HTTPException) -> ApiError:
    if error.status_code == 404:
        return ApiError(404, "there is nothing at this path; the API is at /v1", code="not_found")
    if error.status_code == 400:  # FastAPI's own: the body could not be parsed at all
        told = "the body is not valid JSON: not UTF-8, too deep, or a number is too long"
        return ApiError(400, told, code="invalid_json")
    return ApiError(error.status_code, str(error.detail), code=None)


def _prompt_field(request: Request) -> str:
    return "messages" if request.url.path.endswith("/chat/completions") else "prompt"


def _response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)
